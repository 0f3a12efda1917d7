package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// BenchmarkResident reads the memory of a fresh nomad-kubelet, and of the same
// process with many pods.
func BenchmarkResident(b *testing.B) {
	h, n := hy, *memoryPods
	if n == 0 {
		b.Skip("-memory-pods is 0")
	}
	ns := h.namespace(b)
	must(b, h.Stop(b.Context(), devcluster.NomadKubelet))
	must(b, h.Start(b.Context(), devcluster.NomadKubelet))
	empty, _ := h.resident(b)
	ctx, cancel := context.WithTimeout(b.Context(), 2*manyTimeout)
	defer cancel()
	start := time.Now()
	pods, err := h.create(ctx, ns, n, mockPod)
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	took := time.Since(start)
	full, peak := h.resident(b)
	b.ReportMetric(full, "MiB")
	report.Add("resident memory without pods", fmt.Sprintf("%.0f MiB", empty), "")
	report.Add(fmt.Sprintf("resident memory with %d mock pods", n), fmt.Sprintf("%.0f MiB", full),
		fmt.Sprintf("%.0f KiB a pod, peak %.0f MiB; all ran after %.0f s", (full-empty)*1024/float64(n), peak, took.Seconds()))
	must(b, h.removePods(b.Context(), ns))
	must(b, h.collect(b.Context()))
}

// resident waits for quiet, and for the runtime to give back what it does not need.
func (h *hybrid) resident(b *testing.B) (now, peak float64) {
	b.Helper()
	must(b, h.quiet(b.Context()))
	time.Sleep(*settle)
	pid, err := h.pid(devcluster.NomadKubelet)
	must(b, err)
	now, peak, err = memory(pid)
	must(b, err)
	return now, peak
}
