package bench

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	manyRatio = 1.25
	// busyOthers is how many cores may be busy with other things. Beyond that
	// the ratio tells who met with more of them, in either direction.
	busyOthers  = 0.5
	manyTimeout = 5 * time.Minute
	// Writes for one pod.
	registersPerPod = 1
	patchesPerPod   = 3
)

// burst is what one variant took.
type burst struct {
	Seconds float64        `json:"seconds"`
	Sent    float64        `json:"sent"` // all requests answered
	Bound   float64        `json:"bound,omitempty"`
	CPU     cpuTimes       `json:"cpu"`
	Nomad   map[string]int `json:"nomad,omitempty"`
	// Kube are writes as the API server counts them, whoever sent them.
	Kube map[string]float64 `json:"kube"`
	// Updates are the changes of bound pods that a watch has seen.
	Updates int `json:"updates,omitempty"`
}

// BenchmarkManyPods creates pods at once, by turns with registering the same
// jobs directly while as many pod objects are created that nobody runs.
func BenchmarkManyPods(b *testing.B) {
	h, n := hy, *manyCount
	ns := h.namespace(b)
	services, err := h.services(b.Context())
	must(b, err)
	var viaPods, direct []burst
	// One pair that is not counted finds all caches warm on both sides.
	for i := range *rounds + 1 {
		count := n
		if i == 0 {
			count = min(n, 20)
		}
		x, pods := h.manyPods(b, ns, count)
		if i == 0 {
			// Told apart from the direct variant by nothing but the IDs.
			job, err := h.directJob(pods[0], services)
			must(b, err)
			must(b, h.register(b.Context(), job))
			must(b, h.sameShape(translate.JobID(h.ClusterID(), pods[0].UID), *job.ID))
			must(b, h.removeDirect(b.Context(), []string{*job.ID}))
		}
		must(b, h.removePods(b.Context(), ns))
		must(b, h.collect(b.Context()))
		y := h.manyDirect(b, ns, pods, services)
		must(b, h.collect(b.Context()))
		if i == 0 {
			continue
		}
		fmt.Printf("round %d: %d pods in %.1f s (created after %.1f, bound after %.1f), directly %.1f s (sent after %.1f)\n",
			i, n, x.Seconds, x.Sent, x.Bound, y.Seconds, y.Sent)
		viaPods, direct = append(viaPods, x), append(direct, y)
	}
	reportMany(b, n, viaPods, direct)
}

func (h *hybrid) manyPods(b *testing.B, ns string, n int) (burst, []*corev1.Pod) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
	defer cancel()
	must(b, h.quiet(ctx))
	m := h.measure(b)
	pods, err := h.create(ctx, ns, n, mockPod)
	must(b, err)
	sent := time.Now()
	times, err := h.pods.await(ctx, pods)
	must(b, err)
	var bound, running time.Time
	for _, t := range times {
		bound, running = later(bound, t.bound), later(running, t.running)
	}
	x := m.end(b, running)
	x.Updates = h.pods.updates(pods)
	x.Sent, x.Bound = sent.Sub(m.start).Seconds(), bound.Sub(m.start).Seconds()
	return x, pods
}

func (h *hybrid) manyDirect(b *testing.B, ns string, like []*corev1.Pod, services []corev1.Service) burst {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
	defer cancel()
	jobs, ids := make([]*api.Job, len(like)), make([]string, len(like))
	for i, p := range like {
		var err error
		jobs[i], err = h.directJob(p, services)
		must(b, err)
		ids[i] = *jobs[i].ID
	}
	must(b, h.quiet(ctx))
	m := h.measure(b)
	objects := make(chan error)
	go func() {
		_, err := h.create(ctx, ns, len(like), plainPod)
		objects <- err
	}()
	must(b, parallel(len(jobs), func(i int) error { return h.register(ctx, jobs[i]) }))
	sent := time.Now()
	must(b, <-objects)
	times, err := h.direct.await(ctx, ids)
	must(b, err)
	var running time.Time
	for _, t := range times {
		running = later(running, t)
	}
	x := m.end(b, running)
	x.Sent = sent.Sub(m.start).Seconds()
	must(b, h.removeDirect(b.Context(), ids))
	must(b, h.removePods(b.Context(), ns))
	return x
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func reportMany(b *testing.B, n int, pods, direct []burst) {
	seconds := func(x burst) float64 { return x.Seconds }
	p, d := medianOf(pods, seconds), medianOf(direct, seconds)
	logs := "logs off"
	if *withLogs {
		logs = "logs on"
	}
	b.ReportMetric(p/d, "pods/direct")
	own := func(x burst) float64 { return x.CPU.own() }
	others := func(x burst) float64 { return x.CPU[cpuOthers] / x.Seconds }
	figure, goal := fmt.Sprintf("%d mock pods at once (%s) until all run, over direct", n, logs), fmt.Sprintf("at most %.2f", manyRatio)
	measured, beside := fmt.Sprintf("ratio %.2f", p/d), fmt.Sprintf("%s s beside %s s", list(pods, seconds), list(direct, seconds))
	if busy := max(medianOf(pods, others), medianOf(direct, others)); busy > busyOthers {
		report.Unjudged(b, figure, measured, beside, goal, fmt.Sprintf("others kept %.1f cores busy", busy))
	} else {
		report.Goal(b, figure, measured, beside, goal, p/d <= manyRatio)
	}
	report.Add("- CPU of the hybrid, over direct", fmt.Sprintf("ratio %.2f", medianOf(pods, own)/medianOf(direct, own)),
		fmt.Sprintf("%s s beside %s s; others kept %.1f cores busy, %.1f while direct", list(pods, own), list(direct, own), medianOf(pods, others), medianOf(direct, others)))
	report.Add("- CPU seconds by part", "pods: "+cpuMedian(pods).String(), "direct: "+cpuMedian(direct).String())
	registers := medianOf(pods, func(x burst) float64 { return float64(x.Nomad["register"]) }) / float64(n)
	patches := medianOf(pods, func(x burst) float64 { return x.Kube[statusPatches] }) / float64(n)
	updates := medianOf(pods, func(x burst) float64 { return float64(x.Updates) }) / float64(n)
	variables, other := 0, 0
	for kind, count := range pods[len(pods)-1].Nomad {
		switch {
		case strings.HasPrefix(kind, "variable"):
			variables += count
		case kind != "register" && kind != "read" && kind != execCall:
			other += count
		}
	}
	report.Goal(b, "- registers a pod", fmt.Sprintf("%.2f", registers), fmt.Sprintf("other writes in all: %d", other),
		fmt.Sprint(registersPerPod), registers == registersPerPod && other == 0)
	report.Goal(b, "- Variable writes, plain pods", fmt.Sprint(variables), "", "none", variables == 0)
	report.Goal(b, "- status patches a pod", fmt.Sprintf("%.2f", patches), fmt.Sprintf("%.2f that changed something", updates), fmt.Sprintf("at most %d", patchesPerPod), patches <= patchesPerPod)
	report.Detail("manyPods", pods)
	report.Detail("manyDirect", direct)
}

func medianOf(list []burst, f func(burst) float64) float64 {
	var v []float64
	for _, x := range list {
		v = append(v, f(x))
	}
	return figures.Median(v)
}

func list(l []burst, f func(burst) float64) string {
	var v []string
	for _, x := range l {
		v = append(v, fmt.Sprintf("%.1f", f(x)))
	}
	return strings.Join(v, ", ")
}

func cpuMedian(l []burst) cpuTimes {
	out := cpuTimes{}
	for name := range l[0].CPU {
		out[name] = medianOf(l, func(x burst) float64 { return x.CPU[name] })
	}
	return out
}
