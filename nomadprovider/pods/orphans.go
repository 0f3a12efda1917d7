package pods

import (
	"context"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
)

// A job without a pod whose deletion was not seen is an orphan: the deletion
// happened while nobody watched, or the API server is not the one it was, set
// up anew or restored from an old backup. One or two are reaped after asking
// the API server for the pod by name. When they are many at once, they are
// left alone for OrphanGuard, and it is said loudly, so that an operator has
// time to stop this process before what runs is lost.

// fewOrphans are reaped without waiting.
const fewOrphans = 3

// orphanGuard remembers since when there are many orphans.
type orphanGuard struct{ since time.Time }

// orphan says how long to wait before the job may be reaped; 0 is now.
func (c *Controller) orphan(ctx context.Context, uid types.UID, entry allocs.Entry) (time.Duration, error) {
	job := entry.Job
	for _, companion := range entry.Companions {
		if job.ID == "" {
			job = companion.Job // the pod's own is gone already
		}
	}
	namespace, rest, ok := strings.Cut(job.Name, "/")
	name, _, _ := strings.Cut(rest, "/")
	if !ok {
		return 0, fmt.Errorf("job %s is named %q, not <namespace>/<pod>: it is left alone", job.ID, job.Name)
	}
	pod, err := c.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil && pod.UID == uid:
		// It is there, on a node that is not ours or not in our view yet.
		return time.Minute, nil
	case err != nil && !apierrors.IsNotFound(err):
		return 0, fmt.Errorf("ask for pod %s/%s: %w", namespace, name, err)
	}
	if entry.Job.Stopped {
		return 0, nil
	}
	return c.guardOrphans(), nil
}

// guardOrphans counts the orphans and holds them back when they are many.
func (c *Controller) guardOrphans() time.Duration {
	orphans, jobs := 0, 0
	for _, uid := range c.cache.UIDs() {
		entry, ok := c.cache.Get(uid)
		if !ok || entry.Job.Stopped {
			continue
		}
		jobs++
		var seen bool
		c.with(uid, func(s *podState) { seen = s.gone })
		if !seen && c.pod(uid) == nil {
			orphans++
		}
	}
	now := c.Clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if orphans <= fewOrphans && orphans < jobs || orphans <= 1 {
		c.guard.since = time.Time{}
		return 0
	}
	if c.guard.since.IsZero() {
		c.guard.since = now
		c.Log.Error("many jobs have no pod: is this the API server they were made for? They are left alone for a while",
			"orphans", orphans, "jobs", jobs, "until", now.Add(c.OrphanGuard).Format(time.RFC3339))
	}
	return max(c.OrphanGuard-now.Sub(c.guard.since), 0)
}
