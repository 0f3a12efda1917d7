package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// BenchmarkTranslate makes jobs of two of translation's own test cases: the
// smallest, and a web server with ConfigMaps, Secrets and a token.
func BenchmarkTranslate(b *testing.B) {
	for _, name := range []string{"minimal", "web"} {
		var rate float64
		var allocs uint64
		b.Run(name, func(b *testing.B) {
			pod, in := testCase(b, name)
			b.ReportAllocs()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n := 0
			for b.Loop() {
				if _, err := translate.Job(pod, in); err != nil {
					b.Fatal(err)
				}
				n++
			}
			runtime.ReadMemStats(&after)
			rate = float64(n) / b.Elapsed().Seconds()
			allocs = (after.Mallocs - before.Mallocs) / uint64(n)
			b.ReportMetric(rate, "pods/s")
		})
		report.Add("translate, "+name+" pod", fmt.Sprintf("%.0f pods/s per core", rate), fmt.Sprintf("%d allocations a pod", allocs))
	}
}

func testCase(b *testing.B, name string) (*corev1.Pod, translate.Inputs) {
	b.Helper()
	dir := filepath.Join("../../translate/testdata", name)
	data, err := os.ReadFile(filepath.Join(dir, "pod.yaml"))
	must(b, err)
	pod := &corev1.Pod{}
	must(b, yaml.UnmarshalStrict(data, pod))
	in := translate.Inputs{Cluster: "c1", Node: hy.profile, ConfigMaps: translate.Keys{}, Secrets: translate.Keys{}}
	if data, err = os.ReadFile(filepath.Join(dir, "inputs.yaml")); err == nil {
		err = yaml.UnmarshalStrict(data, &in)
	} else if os.IsNotExist(err) {
		err = nil
	}
	must(b, err)
	return pod, in
}
