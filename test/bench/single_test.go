package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The goals for what a pod may take longer than its job alone.
const (
	overheadMedian = 150 * time.Millisecond
	overheadP95    = 400 * time.Millisecond
	oneTimeout     = time.Minute
)

// stages are the parts of one pod's way, in order.
var stages = []string{
	"create to bound (kube-scheduler)",
	"bound to register sent",
	"register answered",
	"answered to running event (Nomad)",
	"running event to Ready in the API",
}

// BenchmarkOnePod takes the time from create to Ready of one container pod, by
// turns with that of the same job registered directly.
func BenchmarkOnePod(b *testing.B) {
	h := hy
	ns := h.namespace(b)
	services, err := h.services(b.Context())
	must(b, err)
	events := newJobWatch()
	events.follow(b.Context(), h.nomad, h.profile.Namespace)

	parts := make([][]time.Duration, len(stages))
	var pods, directs, extra, outside []time.Duration
	// The first pair warms up the engine and is not counted.
	for i := range *pairs + 1 {
		podTook, times, p := h.onePod(b, ns, fmt.Sprintf("p%02d", i), events)
		directTook, directID := h.oneDirect(b, p, services)
		if i == 0 {
			must(b, h.sameShape(translate.JobID(h.ClusterID(), p.UID), directID))
		}
		must(b, h.removeDirect(b.Context(), []string{directID}))
		must(b, h.removePods(b.Context(), ns))
		if i == 0 {
			continue
		}
		pods, directs, extra = append(pods, podTook), append(directs, directTook), append(extra, podTook-directTook)
		for s, d := range times {
			parts[s] = append(parts[s], d)
		}
		outside = append(outside, times[0]+times[1]+times[4])
	}
	b.ReportMetric(float64(figures.Median(extra).Milliseconds()), "ms-over-Nomad")
	report1(b, pods, directs, extra, outside, parts)
}

// report1 takes the goals at the difference of the medians, and for p95 at the
// time each pod spent outside Nomad: the jitter of Nomad itself, which answers
// by ticks of a second fraction, is in both terms of a difference and would
// drown the tail of what is wanted.
func report1(b *testing.B, pods, directs, extra, outside []time.Duration, parts [][]time.Duration) {
	report.Add("1 pod, create to Ready", spread(pods), "same job on Nomad: "+spread(directs))
	over := figures.Median(pods) - figures.Median(directs)
	report.Goal(b, "- on top of Nomad, median", ms(over), "median of paired differences "+ms(figures.Median(extra)),
		"at most "+ms(overheadMedian), over <= overheadMedian)
	p95 := figures.Quantile(outside, 0.95)
	report.Goal(b, "- before register and after the running event, p95", ms(p95),
		fmt.Sprintf("median %s; p95 of paired differences %s, of pods less of jobs %s", ms(figures.Median(outside)), ms(figures.Quantile(extra, 0.95)), ms(figures.Quantile(pods, 0.95)-figures.Quantile(directs, 0.95))),
		"at most "+ms(overheadP95), p95 <= overheadP95)
	for i, name := range stages {
		report.Add("- "+name, spread(parts[i]), "")
		report.Detail("onePod "+name+" [ms]", msList(parts[i]))
	}
	report.Detail("onePod pod [ms]", msList(pods))
	report.Detail("onePod direct [ms]", msList(directs))
}

func (h *hybrid) onePod(b *testing.B, ns, name string, events *jobWatch) (took time.Duration, parts []time.Duration, p *corev1.Pod) {
	b.Helper()
	must(b, h.quiet(b.Context()))
	ctx, cancel := context.WithTimeout(b.Context(), oneTimeout)
	defer cancel()
	start := time.Now()
	p, err := h.kube.CoreV1().Pods(ns).Create(ctx, pod(name), metav1.CreateOptions{})
	must(b, err)
	all, err := h.pods.await(ctx, []*corev1.Pod{p})
	must(b, err)
	id := translate.JobID(h.ClusterID(), p.UID)
	ran, err := events.await(ctx, []string{id})
	must(b, err)
	reg, ok := h.proxy.registered(id)
	if !ok {
		b.Fatalf("job %s was not registered through the proxy", id)
	}
	t := all[p.UID]
	at := []time.Time{start, t.bound, reg.from, reg.to, ran[id], t.ready}
	for i := range stages {
		parts = append(parts, at[i+1].Sub(at[i]))
	}
	return t.ready.Sub(start), parts, p
}

func (h *hybrid) oneDirect(b *testing.B, like *corev1.Pod, services []corev1.Service) (time.Duration, string) {
	b.Helper()
	job, err := h.directJob(like, services)
	must(b, err)
	must(b, h.quiet(b.Context()))
	ctx, cancel := context.WithTimeout(b.Context(), oneTimeout)
	defer cancel()
	start := time.Now()
	must(b, h.register(ctx, job))
	ran, err := h.direct.await(ctx, []string{*job.ID})
	must(b, err)
	return ran[*job.ID].Sub(start), *job.ID
}
