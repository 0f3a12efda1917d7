package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Single containers are stopped by signals and not by Nomad's restart API: to
// Nomad they end by themselves, so that their restart policy and back-off hold.

// minimumGrace is what a container gets between its stop signal and SIGKILL
// however long its preStop hook took
// (pkg/kubelet/kuberuntime/kuberuntime_container.go, minimumGracePeriodInSeconds).
const minimumGrace = 2 * time.Second

// kill is the end of one run of a container.
type kill struct {
	run      time.Time // its start
	deadline time.Time
	// soonest is the earliest that the deadline may be, once it was told to stop.
	soonest time.Time
	// signalled says that it was told to stop, killed that it was not asked.
	signalled, killed bool
}

// killContainer has the container's current run ended by deadline: preStop
// hook, stop signal, SIGKILL. It says whether this is news.
func (c *Controller) killContainer(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, deadline time.Time) (news bool) {
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	if ts == nil || ts.State != "running" {
		return false
	}
	c.with(pod.UID, func(s *podState) {
		k := s.kills[task]
		if k == nil || !k.run.Equal(ts.StartedAt) {
			s.kills[task] = &kill{run: ts.StartedAt, deadline: deadline}
			news = true
		} else if deadline.Before(k.deadline) && k.deadline.After(k.soonest) {
			k.deadline = deadline
			if deadline.Before(k.soonest) {
				k.deadline = k.soonest
			}
		}
	})
	return news
}

// workKills moves the containers that are to end one step.
func (c *Controller) workKills(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation) (again time.Duration, err error) {
	var errs []error
	for _, ct := range containersOf(pod) {
		wait, err := c.workKill(ctx, pod, alloc, ct)
		errs = append(errs, err)
		again = sooner(again, wait)
	}
	return again, errors.Join(errs...)
}

func (c *Controller) workKill(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container) (time.Duration, error) {
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	var k *kill
	c.with(pod.UID, func(s *podState) {
		if k = s.kills[task]; k != nil && (ts == nil || ts.State != "running" || !ts.StartedAt.Equal(k.run)) {
			delete(s.kills, task) // it has ended
			k = nil
		}
	})
	if k == nil {
		return 0, nil
	}
	left := k.deadline.Sub(c.Clock.Now())
	if !k.signalled {
		if wait := c.preStop(pod, alloc, ct, left); wait > 0 {
			return wait, nil
		}
		if err := c.signal(ctx, c.driver(pod), alloc, task, stopSignal(ct)); err != nil {
			return 0, err
		}
		left = max(left, minimumGrace)
		now := c.Clock.Now()
		c.with(pod.UID, func(*podState) { k.signalled, k.deadline, k.soonest = true, now.Add(left), now.Add(minimumGrace) })
		return left, nil
	}
	if left > 0 || k.killed {
		return max(left, 0), nil // when it was killed its end comes as an event
	}
	if err := c.signal(ctx, c.driver(pod), alloc, task, sigkill); err != nil {
		return 0, err
	}
	c.with(pod.UID, func(*podState) { k.killed = true })
	return 0, nil
}

// preStop says how long the container's preStop hook is still to be waited for,
// at most left; it starts it.
func (c *Controller) preStop(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, left time.Duration) time.Duration {
	if ct.Lifecycle == nil || left <= 0 || !translate.HookRuns(ct.Lifecycle.PreStop, c.driver(pod)) {
		return 0
	}
	task := translate.TaskName(ct.Name)
	done, wait, err := c.hook(pod, alloc, ct, keyOf(task, alloc.TaskStates[task], true), ct.Lifecycle.PreStop, left)
	if done && err != nil && !errors.Is(err, context.DeadlineExceeded) {
		c.Recorder.Event(containerRef(pod, ct.Name), corev1.EventTypeWarning, reasonPreStop, "PreStopHook failed: container "+ct.Name)
	}
	if done {
		return 0
	}
	return sooner(left, wait)
}

const sigkill = "SIGKILL"

func stopSignal(ct *corev1.Container) string {
	if ct.Lifecycle != nil && ct.Lifecycle.StopSignal != nil {
		return string(*ct.Lifecycle.StopSignal)
	}
	return string(corev1.SIGTERM)
}

// signal sends a signal to a task; that it has ended meanwhile comes as an event.
// A VM's is its power button, and its plug.
func (c *Controller) signal(ctx context.Context, driver string, alloc *api.Allocation, task, signal string) error {
	if driver == driverQemu && task != translate.CompanionTask {
		if signal == sigkill {
			return c.askCompanion(ctx, alloc, nil, "vm-cut", translate.VMPlug)
		}
		return c.askCompanion(ctx, alloc, nil, "vm-press", translate.VMMonitor)
	}
	err := c.Nomad.Allocations().Signal(alloc, (&api.QueryOptions{Namespace: alloc.Namespace}).WithContext(ctx), task, signal)
	// The second is Docker's word for one that Nomad still takes for running.
	if err != nil && !strings.Contains(err.Error(), "Task not running") && !strings.Contains(err.Error(), "is not running") {
		return fmt.Errorf("send %s to task %s of allocation %s: %w", signal, task, alloc.ID, err)
	}
	return nil
}

// windDown ends all of the pod's containers by deadline. The job is stopped at
// once where Nomad's own order will do: the main containers, then a sidecar.
// Where there are preStop hooks or several sidecars, which end in the reverse of
// the order in which they started, it takes one container after another and
// stops the job when none is left.
func (c *Controller) windDown(ctx context.Context, pod *corev1.Pod, entry allocs.Entry, alloc *api.Allocation, deadline time.Time) (time.Duration, error) {
	left := deadline.Sub(c.Clock.Now())
	if entry.Job.Stopped || left <= 0 || !c.ordered(pod, alloc) {
		if !entry.Job.Stopped {
			if err := c.stop(ctx, entry.Job); err != nil {
				return 0, err
			}
		}
		return c.killAt(ctx, c.driver(pod), alloc, deadline)
	}
	for _, ct := range endNext(pod, alloc) {
		c.killContainer(pod, alloc, ct, deadline)
	}
	again, err := c.workKills(ctx, pod, alloc)
	if err != nil {
		return 0, err
	}
	// What has ended is not to run again, and what has not begun is not to.
	for _, ct := range containersOf(pod) {
		task := translate.TaskName(ct.Name)
		if ts := alloc.TaskStates[task]; ts != nil && ts.State == "pending" {
			if err := c.setGate(ctx, pod, entry.Job, task, translate.GateHold, true); err != nil {
				return 0, err
			}
		}
	}
	return sooner(again, left), nil
}

// ordered says whether the containers are to be stopped one by one.
func (c *Controller) ordered(pod *corev1.Pod, alloc *api.Allocation) bool {
	hooks := slices.ContainsFunc(containersOf(pod), func(ct *corev1.Container) bool {
		return taskRuns(alloc, ct) && ct.Lifecycle != nil && translate.HookRuns(ct.Lifecycle.PreStop, c.driver(pod))
	})
	begun := false
	c.with(pod.UID, func(s *podState) {
		for task, k := range s.kills {
			ts := alloc.TaskStates[task]
			begun = begun || ts != nil && ts.State == "running" && ts.StartedAt.Equal(k.run)
		}
	})
	return hooks || begun || len(runningSidecars(pod, alloc)) > 1
}

// endNext are the running containers whose turn to end it is: all but the
// sidecars, then the sidecars from the last to the first.
func endNext(pod *corev1.Pod, alloc *api.Allocation) (out []*corev1.Container) {
	sidecars := runningSidecars(pod, alloc)
	for _, ct := range containersOf(pod) {
		if taskRuns(alloc, ct) && !slices.Contains(sidecars, ct) {
			out = append(out, ct)
		}
	}
	if len(out) == 0 && len(sidecars) > 0 {
		out = sidecars[len(sidecars)-1:]
	}
	return out
}

func runningSidecars(pod *corev1.Pod, alloc *api.Allocation) (out []*corev1.Container) {
	for i := range pod.Spec.InitContainers {
		if ct := &pod.Spec.InitContainers[i]; translate.Sidecar(ct) && taskRuns(alloc, ct) {
			out = append(out, ct)
		}
	}
	return out
}

func taskRuns(alloc *api.Allocation, ct *corev1.Container) bool {
	ts := alloc.TaskStates[translate.TaskName(ct.Name)]
	return ts != nil && ts.State == "running"
}
