package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Reasons of events and of failed pods.
const (
	reasonRefused     = "UnsupportedByNomad"
	reasonTooLarge    = "ProjectionTooLarge"
	reasonConfigError = "CreateContainerConfigError"
	reasonLost        = "NomadJobLost"
	reasonReplaced    = "NomadAllocationReplaced"
	reasonUnplaced    = "FailedPlacement"
	reasonPlaced      = "Placed"
	reasonApprox      = "Approximated"
	reasonRejected    = "NomadRejectedJob"
)

// reconcile moves a pod one step; again asks for another pass after that time.
func (c *Controller) reconcile(ctx context.Context, uid types.UID) (again time.Duration, err error) {
	pod := c.pod(uid)
	entry, known := c.cache.Get(uid)
	if pod != nil && len(pod.Spec.EphemeralContainers) > 0 {
		// Their trouble is not the pod's.
		wait, failed := c.workEphemeral(ctx, pod, entry)
		defer func() { again, err = sooner(again, wait), errors.Join(err, failed) }()
	}
	switch {
	case pod == nil:
		return c.reap(ctx, uid, entry, known)
	case pod.DeletionTimestamp != nil:
		return c.terminate(ctx, pod, entry, known)
	case finished(pod):
		return 0, c.retire(ctx, pod, entry, known)
	case !known:
		return c.start(ctx, pod)
	case entry.Job.Stopped && len(live(entry)) == 0 && len(entry.Allocs) == 0:
		// Somebody stopped the job before Nomad placed it.
		return 0, c.fail(ctx, pod, nil, reasonLost, "the pod's Nomad job was stopped before it ran")
	default:
		return c.follow(ctx, pod, entry)
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func notFound(err error) bool {
	var r api.UnexpectedResponseError
	return errors.As(err, &r) && r.StatusCode() == http.StatusNotFound
}

// follow brings a pod's status up to what Nomad says, and works its gates.
func (c *Controller) follow(ctx context.Context, pod *corev1.Pod, entry allocs.Entry) (time.Duration, error) {
	alloc := primary(pod, entry)
	if other := usurper(entry, alloc); other != nil {
		return 0, c.replaced(ctx, pod, entry, alloc, other)
	}
	if alloc != nil && unstartable(pod, alloc) {
		return c.startAgain(ctx, pod, entry, alloc)
	}
	refresh, err := c.project(ctx, pod, entry.Job, alloc)
	if err != nil {
		return 0, err
	}
	c.workProbes(pod, alloc)
	if c.driver(pod) == driverQemu {
		if err := c.readMessages(ctx, pod, alloc); err != nil { // exit codes, which gates go by
			return 0, err
		}
	}
	again, err := c.workGates(ctx, pod, entry.Job, alloc)
	if err != nil {
		return 0, err
	}
	// That one cannot be ended is no reason not to tell how the pod is.
	ends, unended := c.workContainers(ctx, pod, alloc)
	again = sooner(sooner(again, refresh), ends)
	c.tellPlacement(pod, alloc, entry.Unplaced)
	if err := c.readMessages(ctx, pod, alloc); err != nil {
		return 0, err
	}
	c.readImages(ctx, pod, alloc)
	status := translate.Status(pod, alloc, c.facts(pod, alloc, entry.Unplaced, nil))
	over := alloc != nil && alloc.ClientTerminalStatus()
	left, expired := c.deadline(pod, &status)
	if !entry.Job.Stopped && (over || translate.Over(pod, &status)) {
		left, expired = 0, false // it ended by itself, and not for being late
	}
	if (expired || translate.Over(pod, &status)) && !entry.Job.Stopped && len(live(entry)) > 0 {
		// Sidecars, parked containers, and those whose time is up.
		wait, err := c.windDown(ctx, pod, entry, alloc, c.windDownBy(pod))
		if err != nil {
			return 0, err
		}
		again = sooner(again, wait)
	}
	// Nobody is to rely on the pod's end while something of it runs.
	if expired && len(remaining(entry)) == 0 {
		return 0, c.fail(ctx, pod, alloc, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
	}
	if over && len(remaining(entry)) == 0 {
		status = translate.Final(pod, status, c.facts(pod, alloc, "", nil))
	}
	if wait := c.notYet(pod, alloc, entry.Unplaced); wait > 0 {
		return sooner(sooner(again, left), wait), nil
	}
	return sooner(again, left), errors.Join(c.report(ctx, pod, status), unended)
}

// workContainers runs the postStart hooks that are due, and ends the containers
// that are to end.
func (c *Controller) workContainers(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation) (time.Duration, error) {
	if alloc == nil || alloc.ClientTerminalStatus() {
		return 0, nil
	}
	hooks := c.workPostStart(pod, alloc)
	c.killUnhealthy(pod, alloc)
	ends, err := c.workKills(ctx, pod, alloc)
	return sooner(hooks, ends), err
}

// windDownBy is until when a pod is to have ended whose end has come by itself.
func (c *Controller) windDownBy(pod *corev1.Pod) (by time.Time) {
	c.with(pod.UID, func(s *podState) {
		if s.windDown.IsZero() {
			s.windDown = c.Clock.Now().Add(graceOf(pod, nil))
		}
		by = s.windDown
	})
	return by
}

// deadline says how long the pod may still be active (activeDeadlineSeconds),
// 0 when it has no deadline.
func (c *Controller) deadline(pod *corev1.Pod, s *corev1.PodStatus) (left time.Duration, expired bool) {
	if pod.Spec.ActiveDeadlineSeconds == nil || s.StartTime == nil {
		return 0, false
	}
	left = s.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second).Sub(c.Clock.Now())
	return max(left, 0), left <= 0
}

func (c *Controller) tellPlacement(pod *corev1.Pod, alloc *api.Allocation, unplaced string) {
	var waiting bool
	for _, cond := range pod.Status.Conditions {
		if cond.Type == translate.ConditionPlaced && cond.Status == corev1.ConditionFalse {
			waiting = cond.Message == unplaced || alloc != nil
			if alloc != nil {
				c.Recorder.Eventf(pod, corev1.EventTypeNormal, reasonPlaced, "Nomad placed the pod on client %s", alloc.NodeName)
			}
		}
	}
	if alloc == nil && unplaced != "" && !waiting {
		c.Recorder.Eventf(pod, corev1.EventTypeWarning, reasonUnplaced, "Nomad has no place for the pod and will place it when there is: %s", unplaced)
	}
}

// replaced ends a pod whose allocation Nomad has replaced behind our back, for
// a drain or by hand: a second copy with another address is another pod, and
// making it is the business of the pod's controller.
func (c *Controller) replaced(ctx context.Context, pod *corev1.Pod, entry allocs.Entry, old, other *api.Allocation) error {
	msg := fmt.Sprintf("Nomad replaced allocation %s (%s) by %s", old.ID, old.DesiredDescription, other.ID)
	if err := c.stop(ctx, entry.Job); err != nil {
		return err
	}
	c.Recorder.Event(pod, corev1.EventTypeWarning, reasonReplaced, msg)
	return c.fail(ctx, pod, old, reasonReplaced, msg)
}

// primary is the allocation that is the pod: the one its status names, else
// the oldest.
func primary(pod *corev1.Pod, entry allocs.Entry) *api.Allocation {
	id := translate.AllocID(&pod.Status)
	for _, a := range entry.Allocs {
		if a.ID == id {
			return a
		}
	}
	if len(entry.Allocs) > 0 {
		return entry.Allocs[0]
	}
	return nil
}

// usurper is a live allocation beside the pod's own.
func usurper(entry allocs.Entry, own *api.Allocation) *api.Allocation {
	for _, a := range entry.Allocs {
		if a.ID != own.ID && !a.ClientTerminalStatus() && a.DesiredStatus == api.AllocDesiredStatusRun {
			return a
		}
	}
	return nil
}

func live(entry allocs.Entry) []*api.Allocation {
	var out []*api.Allocation
	for _, a := range entry.Allocs {
		if !a.ClientTerminalStatus() {
			out = append(out, a)
		}
	}
	return out
}

// retire stops the job of a pod that has finished: parked containers and
// sidecars end with it. The job stays until the pod object is gone, for its logs.
func (c *Controller) retire(ctx context.Context, pod *corev1.Pod, entry allocs.Entry, known bool) error {
	c.objects.Release(pod.UID)
	c.prober.Drop(pod.UID)
	if len(remaining(entry)) == 0 {
		c.letGo(pod.UID)
	}
	if !known || entry.Job.Stopped || len(entry.Allocs) > 0 && len(live(entry)) == 0 {
		return nil
	}
	return c.stop(ctx, entry.Job)
}
