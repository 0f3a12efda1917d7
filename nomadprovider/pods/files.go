package pods

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// A pod whose volumes a companion writes gets their contents through it: they
// are handed over by a command, so they have no bound but the client's disk, and
// lie neither in the job nor in a Variable. The containers wait behind their
// gates until the companion has said that the files are there.

// files is what is remembered of a pod's files.
type files struct {
	// run is the companion's run that was last handed the list, and sum is of
	// the list: another run may have lost what it had.
	run    time.Time
	sum    [sha256.Size]byte
	tokens projection.Tokens
	failed string // that was told last
}

const (
	reasonFailedMount = "FailedMount"
	// filesRetry is the pause after a list that could not be handed over.
	filesRetry = 2 * time.Second
)

// hasFiles says whether the pod's companion writes its volumes.
func (c *Controller) hasFiles(pod *corev1.Pod, alloc *api.Allocation) bool {
	return alloc.TaskStates[translate.CompanionTask] != nil && translate.HasFiles(pod, c.driver(pod))
}

// filesRun is when the companion that writes the pod's volumes started, zero
// while none runs.
func (c *Controller) filesRun(pod *corev1.Pod, alloc *api.Allocation) time.Time {
	if alloc == nil || alloc.ClientTerminalStatus() || !c.hasFiles(pod, alloc) {
		return time.Time{}
	}
	if ts := alloc.TaskStates[translate.CompanionTask]; ts != nil && ts.State == "running" {
		return ts.StartedAt
	}
	return time.Time{}
}

// filesReady says whether the containers may start, as far as their volumes go.
func (c *Controller) filesReady(pod *corev1.Pod, alloc *api.Allocation) bool {
	if !c.hasFiles(pod, alloc) {
		return true
	}
	var ready bool
	c.with(pod.UID, func(s *podState) { ready = !s.files.run.IsZero() })
	return ready
}

// handOver brings the pod's files up to date. next is when to look again.
func (c *Controller) handOver(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, f *translate.Files) (next time.Duration, err error) {
	run := c.filesRun(pod, alloc)
	if f == nil || run.IsZero() {
		return 0, nil
	}
	var was files
	c.with(pod.UID, func(s *podState) { was = s.files })
	list, tokens, next, err := c.writer.Files(ctx, pod, f, was.tokens)
	if err != nil {
		return 0, err
	}
	now := files{run: run, sum: sha256.Sum256(list), tokens: tokens}
	if now.run.Equal(was.run) && now.sum == was.sum {
		return next, nil
	}
	if err := c.askCompanion(ctx, alloc, list, "files"); err != nil {
		c.tellMount(pod, "write the pod's volumes: "+err.Error())
		c.with(pod.UID, func(s *podState) { s.dirty = true })
		return filesRetry, nil
	}
	c.with(pod.UID, func(s *podState) { s.files = now })
	return next, nil
}

// tellCompanion says why the companion does not start.
func (c *Controller) tellCompanion(pod *corev1.Pod, alloc *api.Allocation) {
	if alloc == nil {
		return
	}
	if ts := alloc.TaskStates[translate.CompanionTask]; ts != nil && ts.State != "running" && ts.StartedAt.IsZero() {
		for _, e := range ts.Events {
			if translate.StartFailure(e) {
				c.tellMount(pod, "the pod's companion (virtualNodes[].companionImage) does not start: "+e.DisplayMessage)
				return
			}
		}
	}
}

// tellMount makes an event of trouble, once as long as it is the same.
func (c *Controller) tellMount(pod *corev1.Pod, message string) {
	var known bool
	c.with(pod.UID, func(s *podState) { known, s.files.failed = s.files.failed == message, message })
	if !known {
		c.Recorder.Event(pod, corev1.EventTypeWarning, reasonFailedMount, truncate(message, 900))
	}
}
