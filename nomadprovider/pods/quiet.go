package pods

import (
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// A pod's start is not told of until it has taken this long: most run by then,
// and are told so by one patch instead of two or three. In a burst they take
// longer, and those patches would compete with the ones that matter.
const (
	startQuiet      = 2 * time.Second
	startQuietBurst = 10 * time.Second
	// burst is how many pods start at once in one.
	burst = 16
)

// notYet says how long to keep quiet about a pod that has just been registered
// and of which there is nothing to say yet.
func (c *Controller) notYet(pod *corev1.Pod, alloc *api.Allocation, unplaced string) time.Duration {
	news := unplaced != "" || pod.Status.StartTime != nil
	if alloc != nil {
		for _, ts := range alloc.TaskStates {
			news = news || !ts.StartedAt.IsZero() || ts.Restarts > 0 || ts.Failed
		}
	}
	var left time.Duration
	c.with(pod.UID, func(s *podState) {
		quiet := startQuiet
		if len(c.starting) > burst {
			quiet = startQuietBurst
		}
		left = max(0, s.registered.Add(quiet).Sub(c.Clock.Now()))
		if news || left == 0 {
			delete(c.starting, pod.UID)
			left = 0
		}
	})
	return left
}
