package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// An ephemeral container is a companion job of its own. It is registered once a
// container of the pod has started, and once its target runs if it names one;
// it is never run twice. What cannot be started is tried again after the
// kubelet's back-off, as nothing of it has run. The job stays until the pod is
// gone, for its logs, and is stopped when the pod ends.

const (
	reasonCreating = "ContainerCreating"
	reasonUnknown  = "ContainerStatusUnknown"
	// exitCannotRun is the kubelet's code for a container that could not be started.
	exitCannotRun = 128
	exitUnknown   = 137
)

// workEphemeral moves every ephemeral container one step.
func (c *Controller) workEphemeral(ctx context.Context, pod *corev1.Pod, entry allocs.Entry) (again time.Duration, err error) {
	alloc := primary(pod, entry)
	facts := map[string]translate.EphemeralFacts{}
	var errs []error
	for i := range pod.Spec.EphemeralContainers {
		ec := &pod.Spec.EphemeralContainers[i]
		f, wait, err := c.workOne(ctx, pod, ec, entry, alloc)
		facts[ec.Name], again, errs = f, sooner(again, wait), append(errs, err)
	}
	c.with(pod.UID, func(s *podState) { s.ephemeral = facts })
	if finished(pod) {
		// Of a pod that is over, nothing else changes.
		status := *pod.Status.DeepCopy()
		status.EphemeralContainerStatuses = translate.EphemeralStatuses(pod, c.facts(pod, alloc, "", nil))
		errs = append(errs, c.report(ctx, pod, status))
	}
	return again, errors.Join(errs...)
}

// ending says whether the pod is on its way to its end, and what is beside it
// has to go.
func ending(pod *corev1.Pod, entry allocs.Entry, alloc *api.Allocation) bool {
	return pod.DeletionTimestamp != nil || finished(pod) || entry.Job.ID == "" || entry.Job.Stopped || alloc != nil && alloc.ClientTerminalStatus()
}

func (c *Controller) workOne(ctx context.Context, pod *corev1.Pod, ec *corev1.EphemeralContainer, entry allocs.Entry, alloc *api.Allocation) (f translate.EphemeralFacts, again time.Duration, err error) {
	companion, known := entry.Companions[ec.Name]
	told := translate.EphemeralStatus(pod, ec.Name)
	if len(companion.Allocs) > 0 {
		f.Alloc = companion.Allocs[0]
		_ = c.readMessage(ctx, pod, (*corev1.Container)(&ec.EphemeralContainerCommon), f.Alloc, driverDocker) // of a VM alone
	}
	switch {
	case !known && told.State.Terminated != nil:
	case !known && told.ContainerID != "":
		f.State, err = c.lostEphemeral(ctx, pod, ec.Name, told)
	case ending(pod, entry, alloc):
		again, err = c.endEphemeral(ctx, pod, companion, known)
	case !known:
		f.State, again, err = c.startEphemeral(ctx, pod, ec, alloc)
	case f.Alloc == nil && companion.Unplaced != "":
		f.State = waitingFor(reasonCreating, "Nomad has no place for it and will run it when there is: "+companion.Unplaced)
	case f.Alloc != nil && neverStarted(f.Alloc, ec.Name):
		f.Tries, again, err = c.retryEphemeral(ctx, pod, ec.Name, companion, f.Alloc)
	}
	return f, again, err
}

func waitingFor(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// neverStarted says that the allocation is over and the container has not run.
func neverStarted(alloc *api.Allocation, name string) bool {
	ts := alloc.TaskStates[translate.TaskName(name)]
	return alloc.ClientTerminalStatus() && (ts == nil || ts.StartedAt.IsZero())
}

// endEphemeral stops the job of a pod that ends, and kills it when less time
// was given than when the job was made.
func (c *Controller) endEphemeral(ctx context.Context, pod *corev1.Pod, companion allocs.Entry, known bool) (time.Duration, error) {
	if !known {
		return 0, nil
	}
	if err := c.stopJob(ctx, companion); err != nil {
		return 0, err
	}
	for _, a := range live(companion) {
		if pod.DeletionTimestamp != nil {
			return c.killAt(ctx, c.driver(pod), a, deadlineOf(pod))
		}
	}
	return 0, nil
}

// lostEphemeral handles a container that ran and whose job is not in the view.
// Nomad itself is asked before anything final is said.
func (c *Controller) lostEphemeral(ctx context.Context, pod *corev1.Pod, name string, told corev1.ContainerStatus) (corev1.ContainerState, error) {
	id := translate.CompanionID(c.Cluster, pod.UID, name)
	_, _, err := c.Nomad.Jobs().Info(id, (&api.QueryOptions{Namespace: c.nodes[pod.Spec.NodeName].Profile().Namespace}).WithContext(ctx))
	switch {
	case err == nil:
		return corev1.ContainerState{}, fmt.Errorf("job %s is there but its event has not arrived", id)
	case !notFound(err):
		return corev1.ContainerState{}, fmt.Errorf("ask for job %s: %w", id, err)
	}
	t := c.cannotRun(reasonUnknown, "Nomad has no job "+id+" any more")
	t.Terminated.ExitCode, t.Terminated.ContainerID = exitUnknown, told.ContainerID
	return t, nil
}

// cannotRun is the state of a container that will not run (any more).
func (c *Controller) cannotRun(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: exitCannotRun, Reason: reason, Message: truncate(message, 2000), FinishedAt: metav1.NewTime(c.Clock.Now().Truncate(time.Second)),
	}}
}

// startEphemeral registers the container's job when it is time.
func (c *Controller) startEphemeral(ctx context.Context, pod *corev1.Pod, ec *corev1.EphemeralContainer, alloc *api.Allocation) (corev1.ContainerState, time.Duration, error) {
	if alloc == nil || !begun(pod, alloc) {
		return waitingFor(reasonCreating, "no container of the pod has started yet"), 0, nil
	}
	if target := ec.TargetContainerName; target != "" {
		if ts := alloc.TaskStates[translate.TaskName(target)]; ts == nil || ts.State != "running" {
			return waitingFor(reasonCreating, fmt.Sprintf("container %q, which it targets, does not run", target)), 0, nil
		}
	}
	profile := c.nodes[pod.Spec.NodeName].Profile()
	in, wait, err := c.inputs(pod, profile)
	if err != nil || wait {
		return corev1.ContainerState{}, 0, err
	}
	result, err := translate.EphemeralJob(pod, ec.Name, alloc, in)
	if err == nil {
		_, err = c.writer.Sync(ctx, c.Nomad, profile.Namespace, *result.Job.ID, pod, result.Items, projection.Fresh)
	}
	if err != nil {
		state, err := c.refuseEphemeral(pod, ec.Name, err)
		return state, 0, err
	}
	return c.registerEphemeral(ctx, pod, ec.Name, profile.Namespace, result)
}

// begun says whether a container of the pod has started, and with it all that
// another joins.
func begun(pod *corev1.Pod, alloc *api.Allocation) bool {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if ts := alloc.TaskStates[translate.TaskName(list[i].Name)]; ts != nil && !ts.StartedAt.IsZero() {
				return true
			}
		}
	}
	return false
}

func (c *Controller) registerEphemeral(ctx context.Context, pod *corev1.Pod, name, namespace string, result *translate.Result) (corev1.ContainerState, time.Duration, error) {
	id := *result.Job.ID
	resp, _, err := c.Nomad.Jobs().RegisterOpts(result.Job, &api.RegisterOptions{EnforceIndex: true, ModifyIndex: 0},
		(&api.WriteOptions{Namespace: namespace}).WithContext(ctx))
	switch {
	case err == nil:
		c.cache.Registered(pod.UID, allocs.Job{
			ID: id, Name: *result.Job.Name, Namespace: namespace, CreateIndex: resp.JobModifyIndex, ModifyIndex: resp.JobModifyIndex,
		})
		c.tell(pod, id, result.Notes)
	case strings.Contains(err.Error(), api.RegisterEnforceIndexErrPrefix):
		// It exists: a former self registered it and its event is on the way.
	case rejected(err):
		state := c.failEphemeral(pod, name, reasonRejected, fmt.Sprintf("Nomad does not take the job of the ephemeral container: %v", err))
		return state, 0, c.deleteVariables(ctx, allocs.Job{ID: id, Namespace: namespace})
	default:
		return corev1.ContainerState{}, 0, fmt.Errorf("register job %s: %w", id, err)
	}
	return corev1.ContainerState{}, 0, nil
}

// refuseEphemeral turns what keeps a container from being run into its state: a
// missing object is waited for, a refusal is final, the rest is trouble to be
// retried.
func (c *Controller) refuseEphemeral(pod *corev1.Pod, name string, err error) (corev1.ContainerState, error) {
	var refused *translate.RefusedError
	var missing *translate.MissingError
	var large *projection.TooLargeError
	switch {
	case errors.As(err, &refused):
		return c.failEphemeral(pod, name, reasonRefused, refused.Error()), nil
	case errors.As(err, &large):
		return c.failEphemeral(pod, name, reasonTooLarge, large.Error()), nil
	case errors.As(err, &missing):
		state := waitingFor(reasonConfigError, missing.Error())
		if told := translate.EphemeralStatus(pod, name).State.Waiting; told == nil || *told != *state.Waiting {
			c.Recorder.Event(pod, corev1.EventTypeWarning, "Failed", "Error: "+missing.Error())
		}
		return state, nil
	}
	return corev1.ContainerState{}, err
}

// failEphemeral tells of a container that will not run. The pod goes on.
func (c *Controller) failEphemeral(pod *corev1.Pod, name, reason, message string) corev1.ContainerState {
	c.Recorder.Event(pod, corev1.EventTypeWarning, reason, truncate("ephemeral container "+name+": "+message, 1000))
	return c.cannotRun(reason, message)
}

// retryEphemeral makes way for the next job of a container that could not be
// started, after the kubelet's back-off for images. The end of the old one puts
// the pod into the queue.
func (c *Controller) retryEphemeral(ctx context.Context, pod *corev1.Pod, name string, companion allocs.Entry, alloc *api.Allocation) (tries uint64, again time.Duration, err error) {
	var r retry
	c.with(pod.UID, func(s *podState) {
		if s.ephemeralRetry == nil {
			s.ephemeralRetry = map[string]retry{}
		}
		r = s.ephemeralRetry[name].after(alloc.ID, c.Clock.Now())
		s.ephemeralRetry[name] = r
	})
	if left := r.at.Sub(c.Clock.Now()); left > 0 {
		return uint64(r.tries), left, nil
	}
	return uint64(r.tries), 0, c.purge(ctx, companion.Job)
}

// stopJob stops a job that is neither stopped nor over.
func (c *Controller) stopJob(ctx context.Context, e allocs.Entry) error {
	if e.Job.Stopped || len(e.Allocs) > 0 && len(live(e)) == 0 {
		return nil
	}
	return c.stop(ctx, e.Job)
}

func (c *Controller) stopCompanions(ctx context.Context, entry allocs.Entry) error {
	var errs []error
	for _, companion := range entry.Companions {
		errs = append(errs, c.stopJob(ctx, companion))
	}
	return errors.Join(errs...)
}

// purgeCompanions makes Nomad forget all that was beside a pod. debugged says
// that Variables may be there without their job.
func (c *Controller) purgeCompanions(ctx context.Context, entry allocs.Entry, prefix string, debugged bool) error {
	for _, companion := range entry.Companions {
		if err := c.purge(ctx, companion.Job); err != nil {
			return err
		}
	}
	if !debugged {
		return nil
	}
	return c.deleteVariablesOf(ctx, entry.Job.Namespace, prefix, func(string) bool { return true })
}

// remaining are the allocations of the pod and of what is beside it that have
// not ended.
func remaining(entry allocs.Entry) []*api.Allocation {
	out := live(entry)
	for _, companion := range entry.Companions {
		out = append(out, live(companion)...)
	}
	return out
}
