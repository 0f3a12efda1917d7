package pods

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// project keeps the Variable and the files of a running pod current: after a
// change of an object it names, when a token wants replacing, once after this
// process started, and when its companion has started.
func (c *Controller) project(ctx context.Context, pod *corev1.Pod, job allocs.Job, alloc *api.Allocation) (time.Duration, error) {
	var due bool
	var left time.Duration
	var items []translate.Item
	run := c.filesRun(pod, alloc)
	if run.IsZero() {
		c.tellCompanion(pod, alloc) // its start comes as an event
	}
	c.with(pod.UID, func(s *podState) {
		items = s.items
		if !s.refresh.IsZero() {
			left = s.refresh.Sub(c.Clock.Now())
		}
		due = s.dirty || !s.projected || !s.refresh.IsZero() && left <= 0 || !run.IsZero() && !run.Equal(s.files.run)
		s.dirty = false
	})
	if !due {
		return left, nil
	}
	retry := func(err error) (time.Duration, error) {
		c.with(pod.UID, func(s *podState) { s.dirty = true })
		return 0, err
	}
	result, wait, err := c.translate(pod, c.nodes[pod.Spec.NodeName].Profile())
	if wait {
		return retry(nil)
	}
	var missing *translate.MissingError
	var refused *translate.RefusedError
	mode := projection.Bereft
	switch {
	case err == nil:
		items, mode = result.Items, projection.Complete
	case !errors.As(err, &missing) && !errors.As(err, &refused):
		return retry(err)
	}
	// With an object missing it runs with what it has of it, as on the kubelet;
	// the others and the tokens are kept current.
	next, err := c.writer.Sync(ctx, c.Nomad, job.Namespace, job.ID, pod, items, mode)
	if errors.As(err, &missing) {
		return 0, nil
	}
	if err != nil {
		return retry(err)
	}
	if mode == projection.Complete {
		fresh, err := c.handOver(ctx, pod, alloc, result.Files)
		if err != nil && !errors.As(err, &missing) {
			return retry(err)
		}
		next = sooner(next, fresh)
	}
	c.projected(pod.UID, items, next)
	return next, nil
}

// projected remembers what the pod's Variable holds and until when.
func (c *Controller) projected(uid types.UID, items []translate.Item, next time.Duration) {
	c.with(uid, func(s *podState) {
		s.projected, s.items, s.refresh = true, items, time.Time{}
		if next > 0 {
			s.refresh = c.Clock.Now().Add(next)
		}
	})
}
