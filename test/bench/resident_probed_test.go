package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	probedRest = 30 * time.Second
	// probedPeriod is three times what a probe has that names none: two cores do not
	// carry 200 commands a second, through Nomad, beside all else.
	probedPeriod = 30 * time.Second
)

// execRuntime is a mock in whose tasks any command ends well at once: that is the
// mock driver's exec_command (drivers/mock/driver.go).
func execRuntime(mock translate.Runtime) translate.Runtime {
	mock.Config = map[string]any{"run_for": mock.Config["run_for"], "exec_command": map[string]any{"run_for": "1ms", "exit_code": 0}}
	return mock
}

// probedPod has a readiness and a liveness probe, both by command. They have more
// time than the second that is usual: where a machine has a bad moment, a liveness
// probe that fails three times is not run again, since a mock takes no signals.
func probedPod(name string) *corev1.Pod {
	p := mockPod(name)
	class := execClass
	p.Spec.RuntimeClassName = &class
	probe := &corev1.Probe{
		ProbeHandler:   corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}},
		TimeoutSeconds: 5, PeriodSeconds: int32(probedPeriod / time.Second),
	}
	p.Spec.Containers[0].ReadinessProbe, p.Spec.Containers[0].LivenessProbe = probe, probe
	return p
}

// BenchmarkResidentProbed reads the memory and the CPU time of a nomad-kubelet
// that probes many pods by commands.
func BenchmarkResidentProbed(b *testing.B) {
	h, n := hy, *memoryPods
	if n == 0 {
		b.Skip("-memory-pods is 0")
	}
	ns := h.namespace(b)
	_, err := h.kube.NodeV1().RuntimeClasses().Create(b.Context(), &nodev1.RuntimeClass{
		ObjectMeta: metav1.ObjectMeta{Name: execClass}, Handler: execClass,
	}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		must(b, err)
	}
	must(b, h.Stop(b.Context(), devcluster.NomadKubelet))
	must(b, h.Start(b.Context(), devcluster.NomadKubelet))
	empty, _ := h.resident(b)
	ctx, cancel := context.WithTimeout(b.Context(), 2*manyTimeout)
	defer cancel()
	pods, err := h.create(ctx, ns, n, probedPod)
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	time.Sleep(*settle) // it is not quiet any more
	pid, err := h.pid(devcluster.NomadKubelet)
	must(b, err)
	full, peak, err := memory(pid)
	must(b, err)
	before, err := h.cpu()
	must(b, err)
	counts, updates := h.proxy.snapshot(), h.pods.updates(pods)
	time.Sleep(probedRest)
	after, err := h.cpu()
	must(b, err)
	used, calls := since(before, after), since(counts, h.proxy.snapshot())
	flips := h.pods.updates(pods) - updates
	must(b, h.removePods(b.Context(), ns))
	must(b, h.collect(b.Context()))

	seconds := probedRest.Seconds()
	b.ReportMetric(full, "MiB")
	report.Add(fmt.Sprintf("resident memory with %d mock pods with two exec probes each %s", n, probedPeriod), fmt.Sprintf("%.0f MiB", full),
		fmt.Sprintf("%.0f KiB a pod, peak %.0f MiB; without pods %.0f MiB", (full-empty)*1024/float64(n), peak, empty))
	report.Add("- CPU of nomad-kubelet for them", fmt.Sprintf("%.2f cores", used[devcluster.NomadKubelet]/seconds),
		fmt.Sprintf("%.0f probes a second where %.0f are due, %d changes of pods in %s; Nomad %.2f cores, the proxy before it %.2f",
			float64(calls[execCall])/seconds, 2*float64(n)/probedPeriod.Seconds(), flips, probedRest,
			used[devcluster.Nomad]/seconds, used[cpuBench]/seconds))
	report.Detail("residentProbed", map[string]any{
		"emptyMiB": empty, "fullMiB": full, "peakMiB": peak, "cpu": used, "calls": calls, "podUpdates": flips,
	})
}
