package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The golden jobs of translate are valid to a real Nomad, and those whose
// driver is here run; see translate/live_test.go.
func TestGoldenJobsOnNomad(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^TestLive", "../../translate")
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+cluster.NomadAddress(), "COMPANION_IMAGE="+cluster.Config().VirtualNodes[0].CompanionImage)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "no tests to run") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The dry run needs no cluster, and its HCL is one that Nomad takes.
func TestTranslateCommand(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"../../examples/hello/hello.yaml"} {
		hcl, err := program(t, "translate", "-f", file, "-o", "hcl")
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, hcl)
		}
	}
	manifest := filepath.Join(t.TempDir(), "pod.yaml")
	write := func(text string) {
		if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: 'busybox:1.36', args: [\"${HOME}\"]}]}\n")
	out := strings.Builder{}
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(), "nomad-kubelet"), "translate", "-f", manifest, "-o", "hcl")
	cmd.Stdout = &out // notes go to standard error
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	job := filepath.Join(t.TempDir(), "job.hcl")
	if err := os.WriteFile(job, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	validate := exec.CommandContext(t.Context(), filepath.Join(binDir(), "nomad"), "job", "validate", "-address", cluster.NomadAddress(), job)
	if text, err := validate.CombinedOutput(); err != nil {
		t.Errorf("%v: %s\n%s", err, text, out.String())
	}
	write("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostPID: true, containers: [{name: c, image: x}]}\n")
	if text, err := program(t, "translate", "-f", manifest); err == nil || !strings.Contains(text, "spec.hostPID") {
		t.Errorf("a refused field: %v\n%s", err, text)
	}
}
