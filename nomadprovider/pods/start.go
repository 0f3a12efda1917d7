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

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

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
