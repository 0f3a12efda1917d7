package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
)

func TestRuns(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "side"}, {Name: "over"}},
		Containers:     []corev1.Container{{Name: "alloc"}, {Name: "crashed"}, {Name: "unstarted"}, {Name: "unknown"}},
		EphemeralContainers: []corev1.EphemeralContainer{
			{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}, {EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "none"}},
		},
	}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "alloc", ContainerID: "nomad://a2/alloc-"}}
	e := entry("lost", tasks{"alloc-": running(0, epoch)})
	e.Allocs = append(e.Allocs, newAlloc("a2", "running", tasks{
		"side": running(0, epoch), "over": ended(0, epoch, epoch), "alloc-": running(1, epoch.Add(time.Second)),
		"crashed": crashed(1, 1, epoch, epoch), "unstarted": unstarted(1, epoch), "pod.companion": running(0, epoch),
	}))
	e.Companions = map[string]allocs.Entry{"debug": {Allocs: []*api.Allocation{newAlloc("a3", "running", tasks{"debug": running(0, epoch)})}}}
	told := func() string {
		var out []string
		for _, r := range runs(pod, e) {
			out = append(out, fmt.Sprintf("%s in %s since %s", r.Container, r.Alloc.ID, r.StartedAt.Sub(epoch)))
		}
		return strings.Join(out, ", ")
	}
	if got := told(); got != "side in a2 since 0s, alloc in a2 since 1s, debug in a3 since 0s" {
		t.Error(got)
	}
	e.Allocs[1].ClientStatus = "complete"
	e.Companions = nil
	if got := told(); got != "" {
		t.Error(got)
	}
}

func TestProbeMetrics(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	const head = `
# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.
# TYPE prober_probe_total counter
`
	is := func(want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(r.ProbeMetrics("n"), strings.NewReader(want), "prober_probe_total"); err != nil {
			t.Error(err)
		}
	}
	for _, o := range []probes.Outcome{probes.Success, probes.Warning, probes.Failure, probes.Unknown, probes.Failure, probes.Failure} {
		r.attempted(pod.UID, probes.Attempt{Container: "web", Kind: probes.Liveness, Outcome: o, Took: 30 * time.Millisecond})
	}
	r.attempted("of no pod", probes.Attempt{Container: "web", Kind: probes.Liveness, Outcome: probes.Success})
	is(head + `prober_probe_total{container="web",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="failed"} 3
prober_probe_total{container="web",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="successful"} 2
prober_probe_total{container="web",namespace="ns",pod="p",pod_uid="u",probe_type="Liveness",result="unknown"} 1
`)
	found, err := r.ProbeMetrics("n").Gather()
	if err != nil || len(found) != 2 || found[0].GetName() != "prober_probe_duration_seconds" {
		t.Fatalf("%v, %v", found, err)
	}
	// A failure's time is left out, as the kubelet does.
	if h := found[0].Metric[0].GetHistogram(); h.GetSampleCount() != 3 || h.GetSampleSum() < 0.089 || h.GetSampleSum() > 0.091 {
		t.Errorf("%v", h)
	}
	r.forget(pod.UID)
	is("")
	if found, _ := r.ProbeMetrics("n").Gather(); len(found) != 0 {
		t.Errorf("%v are left", found)
	}
}
