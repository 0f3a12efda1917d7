package pods

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The kubelet tries for ever to start a container whose image cannot be pulled.
// Nomad does so too under a restart policy that restarts; but a task that is
// not to run twice (restartPolicy Never) is not tried twice either, and some
// failures it takes for final. As long as nothing of the pod has ever run, a
// new job in the place of the old one does no harm, and is the next try.

// retry is where a pod stands between two jobs.
type retry struct {
	alloc string // that failed last
	tries int    // that failed
	at    time.Time
}

// after is where things stand once alloc has failed.
func (r retry) after(alloc string, now time.Time) retry {
	if r.alloc == alloc {
		return r
	}
	// The first pause of the kubelet's image back-off is 10 s already.
	pause := (&crash{level: r.tries + 2}).backoff()
	return retry{alloc: alloc, tries: r.tries + 1, at: now.Add(pause)}
}

// unstartable says whether nothing of the pod has ever started and Nomad will
// not try again by itself.
func unstartable(pod *corev1.Pod, alloc *api.Allocation) bool {
	given := false
	for _, task := range []string{translate.CompanionTask, translate.VMFetchTask, translate.VMDiskTask} {
		if ts := alloc.TaskStates[task]; ts != nil && alloc.ClientTerminalStatus() {
			given = given || slices.ContainsFunc(ts.Events, translate.StartFailure)
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			ts := alloc.TaskStates[translate.TaskName(list[i].Name)]
			if ts == nil {
				continue
			}
			if !ts.StartedAt.IsZero() {
				return false
			}
			parked := pod.Spec.RestartPolicy == corev1.RestartPolicyNever && ts.Restarts > 0
			for _, e := range ts.Events {
				given = given || translate.StartFailure(e) && (parked || alloc.ClientTerminalStatus())
			}
		}
	}
	return given
}

// startAgain tells of the failed start, and when the back-off is over makes way
// for the next job: the old one's end puts the pod into the queue, and a pod
// without a job is started.
func (c *Controller) startAgain(ctx context.Context, pod *corev1.Pod, entry allocs.Entry, alloc *api.Allocation) (time.Duration, error) {
	var r retry
	c.with(pod.UID, func(s *podState) {
		delete(c.starting, pod.UID)
		s.retry = s.retry.after(alloc.ID, c.Clock.Now())
		r = s.retry
	})
	c.tellCompanion(pod, alloc)
	f := c.facts(pod, alloc, "", nil)
	f.Again, f.Tries = true, uint64(r.tries)
	if err := c.report(ctx, pod, translate.Status(pod, alloc, f)); err != nil {
		return 0, err
	}
	if left := r.at.Sub(c.Clock.Now()); left > 0 {
		return left, nil
	}
	if len(live(entry)) > 0 {
		if entry.Job.Stopped {
			return 0, nil // its end comes as an event
		}
		return 0, c.stop(ctx, entry.Job)
	}
	c.with(pod.UID, func(s *podState) {
		s.gates, s.projected, s.items, s.refresh = map[string]string{}, false, nil, time.Time{}
	})
	return 0, c.purge(ctx, entry.Job)
}
