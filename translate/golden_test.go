package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

// testInputs is what a cluster and a virtual node look like in the tests; a
// case changes it by its inputs.yaml.
func testInputs() Inputs {
	return Inputs{
		Cluster: "c1",
		Node: NodeProfile{
			Name: "nomad", Region: "global", Namespace: "default", NodePool: "default", Network: NetworkBridge,
			MHzPerCore: 1000, MemoryOversubscription: true, DefaultMemoryMB: 128,
			ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", CompanionImage: "nomad-kubelet/companion:test",
			Runtimes: map[string]Runtime{"": {Driver: "docker"}, "nomad-vm": {Driver: "qemu"}, "mock": {Driver: "mock_driver", NoLogs: true, Config: map[string]any{"run_for": "30s"}}},
		},
		ConfigMaps: Keys{}, Secrets: Keys{},
	}
}

func readCase(t testing.TB, dir string) (*corev1.Pod, Inputs) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "pod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		t.Fatal(err)
	}
	in := testInputs()
	if data, err := os.ReadFile(filepath.Join(dir, "inputs.yaml")); err == nil {
		if err := yaml.UnmarshalStrict(data, &in); err != nil {
			t.Fatal(err)
		}
	}
	return pod, in
}

func cases(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/*/pod.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

func TestGolden(t *testing.T) {
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			pod, in := readCase(t, dir)
			before := pod.DeepCopy()
			got := render(t, pod, in)
			if diff := cmp.Diff(before, pod); diff != "" {
				t.Errorf("the pod was changed:\n%s", diff)
			}
			if again := render(t, pod, in); !slices.Equal(sortedKeys(got), sortedKeys(again)) {
				t.Errorf("a second translation differs in kind")
			} else {
				for name := range got {
					if diff := cmp.Diff(got[name], again[name]); diff != "" {
						t.Errorf("a second translation differs:\n%s", diff)
					}
				}
			}
			for _, name := range []string{"job.json", "notes.txt", "items.yaml", "error.txt"} {
				compareGolden(t, filepath.Join(dir, name), got[name])
			}
		})
	}
}

// render returns the contents of a case's golden files by name.
func render(t *testing.T, pod *corev1.Pod, in Inputs) map[string]string {
	t.Helper()
	res, err := Job(pod, in)
	return renderResult(t, res, err)
}

func renderResult(t *testing.T, res *Result, err error) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err != nil {
		var refused *RefusedError
		var missing *MissingError
		switch {
		case errors.As(err, &refused):
			for _, r := range refused.Refusals {
				out["error.txt"] += r.Field + ": " + r.Reason + "\n"
			}
		case errors.As(err, &missing):
			out["error.txt"] = strings.Join(slices.Concat(missing.Messages, missing.Claims), "\n") + "\n"
		default:
			t.Fatalf("error of type %T: %v", err, err)
		}
		return out
	}
	var job bytes.Buffer
	enc := json.NewEncoder(&job)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(prune(t, res.Job)); err != nil {
		t.Fatal(err)
	}
	out["job.json"] = job.String()
	for _, n := range res.Notes {
		out["notes.txt"] += n.Field + ": " + n.Message + "\n"
	}
	if len(res.Items) > 0 || len(res.ClosedGates) > 0 {
		data, err := yaml.Marshal(prune(t, map[string]any{"items": res.Items, "files": res.Files, "closedGates": res.ClosedGates}))
		if err != nil {
			t.Fatal(err)
		}
		out["items.yaml"] = string(data)
	}
	return out
}

// prune drops what says nothing, so that a golden shows what translation
// decided. Empty environment values are kept.
func prune(t *testing.T, v any) any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var generic any
	if err := json.Unmarshal(data, &generic); err != nil {
		t.Fatal(err)
	}
	return pruneValue(generic)
}

func pruneValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			e = pruneValue(e)
			if e == nil || e == false && k != "Replace" && k != "Unlimited" && k != "Once" && k != "Sticky" && k != "Migrate" || e == "" && k != "EmbeddedTmpl" && !strings.Contains(k, ".") {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
		for i := range v {
			v[i] = pruneValue(v[i])
		}
	}
	return v
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if got == "" {
			_ = os.Remove(path)
			return
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, -update writes it):\n%s", path, diff)
	}
}

func BenchmarkJob(b *testing.B) {
	for _, name := range []string{"minimal", "web", "init"} {
		pod, in := readCase(b, filepath.Join("testdata", name))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Job(pod, in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}

func ExampleHCL() {
	pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "hello", Image: "busybox:1.36"}}}}
	pod.Namespace, pod.Name, pod.UID = "default", "hello", "00000000-0000-0000-0000-000000000001"
	res, err := Job(pod, Inputs{Cluster: "demo", Node: NodeProfile{Name: "nomad", DefaultMemoryMB: 64}})
	if err != nil {
		fmt.Println(err)
		return
	}
	hcl, err := HCL(res.Job)
	fmt.Println(strings.SplitN(string(hcl), "\n", 2)[0], err)
	// Output: job "k8s-demo-00000000-0000-0000-0000-000000000001" { <nil>
}
