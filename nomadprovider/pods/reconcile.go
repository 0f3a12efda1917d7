package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
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

// start registers the job of a pod that Nomad does not know.
func (c *Controller) start(ctx context.Context, pod *corev1.Pod) (time.Duration, error) {
	node := c.nodes[pod.Spec.NodeName]
	profile := node.Profile()
	if id := translate.AllocID(&pod.Status); id != "" {
		return 0, c.lost(ctx, pod, profile, id)
	}
	if c.portsTaken(pod) {
		c.Recorder.Event(pod, corev1.EventTypeWarning, reasonNodePorts, messagePorts)
		return 0, c.fail(ctx, pod, nil, reasonNodePorts, "Pod was rejected: "+messagePorts)
	}
	result, wait, err := c.translate(pod, profile)
	if err != nil || wait {
		return 0, c.refuseOrWait(ctx, pod, err)
	}
	if by := c.holdClaims(pod); by != "" {
		c.tellMount(pod, by)
		return 0, c.tellWaiting(ctx, pod, reasonCreating, by)
	}
	id := *result.Job.ID
	next, err := c.writer.Sync(ctx, c.Nomad, profile.Namespace, id, pod, result.Items, projection.Fresh)
	if err != nil {
		return 0, c.refuseOrWait(ctx, pod, err)
	}
	c.with(pod.UID, func(s *podState) {
		s.registered = c.Clock.Now()
		c.starting[pod.UID] = struct{}{}
	})
	resp, _, err := c.Nomad.Jobs().RegisterOpts(result.Job, &api.RegisterOptions{EnforceIndex: true, ModifyIndex: 0},
		(&api.WriteOptions{Namespace: profile.Namespace}).WithContext(ctx))
	switch {
	case err == nil:
		c.cache.Registered(pod.UID, allocs.Job{
			ID: id, Name: *result.Job.Name, Namespace: profile.Namespace,
			CreateIndex: resp.JobModifyIndex, ModifyIndex: resp.JobModifyIndex,
		})
		c.projected(pod.UID, result.Items, next)
	case strings.Contains(err.Error(), api.RegisterEnforceIndexErrPrefix):
		// It exists: a former self registered it and its event is on the way.
	case rejected(err):
		c.Recorder.Eventf(pod, corev1.EventTypeWarning, reasonRejected, "Nomad does not take the pod's job: %v", err)
		return 0, c.fail(ctx, pod, nil, reasonRejected, fmt.Sprintf("Nomad does not take the pod's job: %v", err))
	default:
		return 0, fmt.Errorf("register job %s: %w", id, err)
	}
	c.tell(pod, id, result.Notes)
	return next, nil
}

// rejected tells an answer about the job itself from trouble on the way.
func rejected(err error) bool {
	var r api.UnexpectedResponseError
	if !errors.As(err, &r) || !r.HasStatusCode() {
		return false
	}
	if r.StatusCode() == http.StatusBadRequest {
		return true
	}
	// Nomad answers 500 for a job that does not validate
	// (nomad/job_endpoint.go, multierror of Validate).
	return r.StatusCode() == http.StatusInternalServerError &&
		(strings.Contains(r.Body(), "error occurred:") || strings.Contains(r.Body(), "errors occurred:"))
}

// tell puts what was only approximated into one event; a plain pod gets none.
func (c *Controller) tell(pod *corev1.Pod, id string, notes []translate.Note) {
	var parts []string
	for _, n := range notes {
		if !n.Common {
			parts = append(parts, n.Field+": "+n.Message)
		}
	}
	if len(parts) == 0 {
		return
	}
	c.Recorder.Eventf(pod, corev1.EventTypeNormal, reasonApprox, "job %s: %s", id, truncate(strings.Join(parts, "; "), 900))
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + " ..."
}

// translate returns wait when the objects that the pod names are not read yet.
func (c *Controller) translate(pod *corev1.Pod, profile translate.NodeProfile) (result *translate.Result, wait bool, err error) {
	in, wait, err := c.inputs(pod, profile)
	if err != nil || wait {
		return nil, wait, err
	}
	result, err = translate.Job(pod, in)
	return result, false, err
}

// inputs gathers what translation is handed besides the pod.
func (c *Controller) inputs(pod *corev1.Pod, profile translate.NodeProfile) (in translate.Inputs, wait bool, err error) {
	if !c.objects.Watch(c.life, pod) {
		return in, true, nil
	}
	in = translate.Inputs{Cluster: c.Cluster, Node: profile}
	in.ConfigMaps, in.BinaryKeys, in.Secrets = c.objects.Keys(pod.UID)
	if in.Claims = c.objects.Claims(pod); len(in.Claims) > 0 {
		c.await(pod.UID) // before the clients are looked at
	}
	for name, claim := range in.Claims {
		if claim.Volume == nil {
			continue
		}
		if volume, ok := translate.HostVolumeName(claim.Volume); ok {
			claim.Paths = c.nodes[pod.Spec.NodeName].HostVolume(volume)
			in.Claims[name] = claim
		}
	}
	in.Services, err = c.visibleServices(pod)
	return in, false, err
}

// refuseOrWait handles what keeps a pod from being registered: a nil error
// waits for objects to be read, a missing object is waited for in the open, a
// refusal is final, the rest is trouble to be retried.
func (c *Controller) refuseOrWait(ctx context.Context, pod *corev1.Pod, err error) error {
	var refused *translate.RefusedError
	var missing *translate.MissingError
	var large *projection.TooLargeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		c.Recorder.Event(pod, corev1.EventTypeWarning, reasonRefused, truncate(refused.Error(), 1000))
		return c.fail(ctx, pod, nil, reasonRefused, refused.Error())
	case errors.As(err, &large):
		c.Recorder.Event(pod, corev1.EventTypeWarning, reasonTooLarge, large.Error())
		return c.fail(ctx, pod, nil, reasonTooLarge, large.Error())
	case errors.As(err, &missing):
		reason := reasonConfigError
		if len(missing.Claims) > 0 {
			c.tellMount(pod, strings.Join(missing.Claims, "; "))
		}
		if len(missing.Messages) == 0 {
			reason = reasonCreating
		}
		return c.tellWaiting(ctx, pod, reason, missing.Error())
	}
	return err
}

// tellWaiting says in the status of a pod that has no job why that is so.
func (c *Controller) tellWaiting(ctx context.Context, pod *corev1.Pod, reason, message string) error {
	w := &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	return c.report(ctx, pod, translate.Status(pod, nil, c.facts(pod, nil, "", w)))
}

// lost handles a pod that once had an allocation and whose job is not in the
// view. Nomad itself is asked before anything final is said.
func (c *Controller) lost(ctx context.Context, pod *corev1.Pod, profile translate.NodeProfile, alloc string) error {
	id := translate.JobID(c.Cluster, pod.UID)
	_, _, err := c.Nomad.Jobs().Info(id, (&api.QueryOptions{Namespace: profile.Namespace}).WithContext(ctx))
	switch {
	case err == nil:
		return fmt.Errorf("job %s is there but its event has not arrived", id)
	case !notFound(err):
		return fmt.Errorf("ask for job %s: %w", id, err)
	}
	msg := fmt.Sprintf("Nomad has no job %s any more (allocation %s): it was purged by somebody else, or Nomad lost its state", id, alloc)
	c.Recorder.Event(pod, corev1.EventTypeWarning, reasonLost, msg)
	return c.fail(ctx, pod, nil, reasonLost, msg)
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
