package bench

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	restartP95 = 2 * time.Second
	// crashGap is the time between two crashes: single ones are meant, not a burst,
	// and a start of a container takes two cores about half a second.
	crashGap     = 1500 * time.Millisecond
	crashTimeout = 2 * time.Minute
	// raftRest is how long Nomad's log is watched while nothing happens.
	raftRest = 10 * time.Second
)

// crashScript exits once, when it is told to, and marks its end and its second
// start. The job's ID tells pods from direct jobs, which are otherwise the same.
const crashScript = `trap 'exit 0' TERM
j=$NOMAD_JOB_ID
if [ -e "/marks/$j.exit" ]; then : > "/marks/$j.back"; sleep 36000 & wait; exit 0; fi
until [ -e "/marks/$j.go" ]; do sleep 0.1; done
: > "/marks/$j.exit"
exit 1`

// crashes are what came of one crash in each of some jobs.
type crashes struct {
	burst
	// Raft is by how much Nomad's log grew, and RaftRest what it grows in a second
	// at rest.
	Raft     float64 `json:"raft"`
	RaftRest float64 `json:"raftRest"`
	// Restart is the time from exit to start as Nomad tells it, Seen as the
	// container itself does.
	Restart, Seen []time.Duration `json:"-"`
}

// BenchmarkCrash lets containers exit once and counts what that takes, beside the
// very same jobs registered directly, whose writes are those of Nomad's client.
func BenchmarkCrash(b *testing.B) {
	h := hy
	for _, c := range []struct {
		name       string
		containers int
	}{{"alone", 1}, {"one of two", 2}} {
		b.Run(c.name, func(b *testing.B) {
			ns, m := h.namespace(b), h.marks(b)
			ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
			defer cancel()
			pods, err := h.create(ctx, ns, *crashers, func(name string) *corev1.Pod { return crashPod(m, name, c.containers) })
			must(b, err)
			_, err = h.pods.await(ctx, pods)
			must(b, err)
			viaPods := h.crashPods(b, ctx, ns, m, pods)
			must(b, h.removePods(b.Context(), ns))
			direct := h.crashDirect(b, ctx, m, pods)
			must(b, h.collect(b.Context()))
			reportCrash(b, c.name, viaPods, direct)
		})
	}
}

func crashPod(m marks, name string, containers int) *corev1.Pod {
	p := pod(name)
	m.mount(p)
	p.Spec.Containers[0].Command = []string{"sh", "-c", crashScript}
	for i := 1; i < containers; i++ {
		other := pod(name).Spec.Containers[0]
		other.Name = fmt.Sprintf("other%d", i)
		p.Spec.Containers = append(p.Spec.Containers, other)
	}
	return p
}

func (h *hybrid) crashPods(b *testing.B, ctx context.Context, ns string, m marks, pods []*corev1.Pod) crashes {
	b.Helper()
	ids := make([]string, len(pods))
	for i, p := range pods {
		ids[i] = translate.JobID(h.ClusterID(), p.UID)
	}
	return h.crash(b, ctx, m, h.profile.Namespace, ids, func(ctx context.Context) error {
		list, err := h.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			s := list.Items[i].Status.ContainerStatuses
			if len(s) == 0 || s[0].RestartCount != 1 || s[0].State.Running == nil {
				return fmt.Errorf("pod %s is not told as restarted", list.Items[i].Name)
			}
		}
		return nil
	})
}

func (h *hybrid) crashDirect(b *testing.B, ctx context.Context, m marks, like []*corev1.Pod) crashes {
	b.Helper()
	services, err := h.services(ctx)
	must(b, err)
	var ids []string
	for _, p := range like {
		job, err := h.directJob(p, services)
		must(b, err)
		must(b, h.register(ctx, job))
		ids = append(ids, *job.ID)
	}
	_, err = h.direct.await(ctx, ids)
	must(b, err)
	x := h.crash(b, ctx, m, directNamespace, ids, func(context.Context) error { return nil })
	must(b, h.removeDirect(b.Context(), ids))
	return x
}

// crash has the first container of each job exit, one after another, and waits
// until Nomad runs all of them again and told says so, too.
func (h *hybrid) crash(b *testing.B, ctx context.Context, m marks, namespace string, ids []string, told func(context.Context) error) crashes {
	b.Helper()
	must(b, h.quiet(ctx))
	first := h.raftIndex(b)
	time.Sleep(raftRest)
	begin := h.raftIndex(b)
	measured := h.measure(b)
	var marked []string
	for _, id := range ids {
		must(b, m.put(id+".go"))
		marked = append(marked, id+".exit", id+".back")
		time.Sleep(crashGap)
	}
	var x crashes
	must(b, poll(ctx, crashTimeout, func(ctx context.Context) (err error) {
		if x.Restart, err = h.restarts(ctx, namespace, ids); err != nil {
			return err
		}
		return told(ctx)
	}))
	seen, err := m.await(ctx, crashTimeout, marked)
	must(b, err)
	for _, id := range ids {
		x.Seen = append(x.Seen, seen[id+".back"].Sub(seen[id+".exit"]))
	}
	x.burst = measured.end(b, time.Now())
	x.Raft, x.RaftRest = float64(h.raftIndex(b)-begin), float64(begin-first)/raftRest.Seconds()
	return x
}

// restarts are the times from the exit of each job's first container to its
// start; an error says which has not started again.
func (h *hybrid) restarts(ctx context.Context, namespace string, ids []string) ([]time.Duration, error) {
	list, _, err := h.nomad.Allocations().List((&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	took := map[string]time.Duration{}
	for _, a := range list {
		if ts := a.TaskStates["c"]; ts != nil && ts.Restarts == 1 && ts.State == "running" && slices.Contains(ids, a.JobID) {
			exit, start := eventTime(ts, api.TaskTerminated, 0), int64(0)
			if exit > 0 {
				start = eventTime(ts, api.TaskStarted, exit)
			}
			if start > 0 {
				took[a.JobID] = time.Duration(start - exit)
			}
		}
	}
	if len(took) < len(ids) {
		return nil, fmt.Errorf("%d of %d containers run again", len(took), len(ids))
	}
	return slices.Collect(maps.Values(took)), nil
}

// eventTime is when the first event of that type happened after another, in
// nanoseconds; 0 when none has.
func eventTime(ts *api.TaskState, kind string, after int64) int64 {
	for _, e := range ts.Events {
		if e.Type == kind && e.Time > after {
			return e.Time
		}
	}
	return 0
}

// raftIndex is of the last entry of Nomad's log that was applied.
func (h *hybrid) raftIndex(b *testing.B) uint64 {
	b.Helper()
	self, err := h.nomad.Agent().Self()
	must(b, err)
	n, err := strconv.ParseUint(self.Stats["raft"]["applied_index"], 10, 64)
	must(b, err)
	return n
}

func reportCrash(b *testing.B, name string, pods, direct crashes) {
	n := float64(len(pods.Restart))
	writes, kinds := 0, []string{}
	for _, kind := range slices.Sorted(maps.Keys(pods.Nomad)) {
		if kind != "read" && kind != execCall {
			writes += pods.Nomad[kind]
			kinds = append(kinds, fmt.Sprintf("%s %.2f", kind, float64(pods.Nomad[kind])/n))
		}
	}
	p95 := figures.Quantile(pods.Restart, 0.95)
	b.ReportMetric(float64(p95.Milliseconds()), "ms-p95")
	report.Goal(b, fmt.Sprintf("a container that crashes, %s: exit to first restart", name), spread(pods.Restart),
		fmt.Sprintf("same job on Nomad: %s; as the containers mark it: %s beside %s",
			spread(direct.Restart), spread(pods.Seen), spread(direct.Seen)),
		"p95 at most "+ms(restartP95), p95 <= restartP95)
	report.Add("- writes to Nomad a crash", fmt.Sprintf("%.2f", float64(writes)/n), strings.Join(kinds, ", "))
	report.Add("- entries of Nomad's Raft log a crash", fmt.Sprintf("%.2f", pods.Raft/n),
		fmt.Sprintf("same job on Nomad: %.2f, which its client writes; at rest %.2f a second beside %.2f",
			direct.Raft/n, pods.RaftRest, direct.RaftRest))
	report.Add("- status patches a crash", fmt.Sprintf("%.2f", pods.Kube[statusPatches]/n), fmt.Sprintf("%.2f events", pods.Kube["POST events"]/n))
	report.Detail("crash, "+name, map[string]any{"pods": pods, "direct": direct,
		"podsRestart [ms]": msList(pods.Restart), "directRestart [ms]": msList(direct.Restart),
		"podsSeen [ms]": msList(pods.Seen), "directSeen [ms]": msList(direct.Seen)})
}
