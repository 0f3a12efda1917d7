package translate

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// nomadBinary is the program that the repository builds.
const nomadBinary = "../bin/nomad"

// TestHCLRoundTrip has Nomad's own parser read every golden job back.
func TestHCLRoundTrip(t *testing.T) {
	if _, err := os.Stat(nomadBinary); err != nil {
		t.Skip("no ../bin/nomad")
	}
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			pod, in := readCase(t, dir)
			res, err := Job(pod, in)
			if err != nil {
				t.Skip("refused")
			}
			roundTrip(t, res.Job)
		})
	}
}

func roundTrip(t *testing.T, job *api.Job) {
	t.Helper()
	hcl, err := HCL(job)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "job.nomad.hcl")
	if err := os.WriteFile(file, hcl, 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(nomadBinary, "job", "run", "-output", file)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, stderr.String(), hcl)
	}
	var parsed struct{ Job *api.Job }
	if err := json.Unmarshal(out, &parsed); err != nil {
		t.Fatal(err)
	}
	// Both with Nomad's defaults, as generic values.
	want := clone(t, job)
	want.Canonicalize()
	parsed.Job.Canonicalize()
	if diff := cmp.Diff(generic(t, want), generic(t, parsed.Job)); diff != "" {
		t.Errorf("-job +read back:\n%s\n%s", diff, hcl)
	}
}

func clone(t *testing.T, job *api.Job) *api.Job {
	t.Helper()
	data, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	out := &api.Job{}
	if err := json.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func generic(t *testing.T, v any) any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return pruneValue(out)
}

// TestHCLKeepsText has values that HCL would change come back as they were.
func TestHCLKeepsText(t *testing.T) {
	if _, err := os.Stat(nomadBinary); err != nil {
		t.Skip("no ../bin/nomad")
	}
	pod := podWith(func(_ *corev1.Pod, c *corev1.Container) {
		c.Env = []corev1.EnvVar{{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
		for _, name := range sortedKeys(nasty) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "E." + name, Value: nasty[name] + "$(IP)"})
			c.Args = append(c.Args, nasty[name], nasty[name]+"$(IP)", "$$$(IP)}", "$$$$"+nasty[name], "${a}", "${a} ${b}}", "<<EOT\n${a}\nEOT\n")
		}
	})
	res, err := Job(pod, testInputs())
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, res.Job)
}
