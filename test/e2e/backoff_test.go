package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A container that ends at once is started again after the kubelet's back-off:
// at once, then 10 s, then 20 s. How late each start is counts from the start
// before, by the clock of the machine that both are on.
func TestBackoffTiming(t *testing.T) {
	// Not beside the other tests, whose pods would make Nomad late.
	ns := namespace(t, kube)
	script := "cut -d' ' -f1 /proc/uptime >> /diary/log; exit 1"
	for name, more := range map[string]option{
		"alone": func(*corev1.Pod) {},
		"among": func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, container("other", "sleep 600")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, mount := diary(t)
			p := create(t, kube, ns, pod(name, script, restart(corev1.RestartPolicyAlways), more, mount))
			await(t, kube, p, 90*time.Second, "restarted three times", func(p *corev1.Pod) bool { return status(p, "c").RestartCount >= 3 })
			data, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			var starts []float64
			for _, line := range strings.Fields(string(data)) {
				at, err := strconv.ParseFloat(line, 64)
				if err != nil {
					t.Fatal(err)
				}
				starts = append(starts, at)
			}
			if len(starts) < 4 {
				t.Fatalf("it started %d times", len(starts))
			}
			for i, want := range []float64{0, 10, 20} {
				// The run itself, and a busy machine, take their part.
				late := starts[i+1] - starts[i] - want
				t.Logf("restart %d: %.2f s late", i+1, late)
				if most := 2.0; late < 0 || late > most && !(i == 0 && late <= 4) {
					t.Errorf("restart %d came after %.2f s, want %.0f to %.1f", i+1, late+want, want, want+most)
				}
			}
		})
	}
}
