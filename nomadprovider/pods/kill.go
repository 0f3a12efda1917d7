package pods

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	reasonKilling = "Killing"
	// minGrace is what a container has at least
	// (pkg/kubelet/kuberuntime/kuberuntime_container.go, minimumGracePeriodInSeconds).
	minGrace = 2 * time.Second
)

// killing is a run of a container that is being ended.
type killing struct {
	run      string
	deadline time.Time
	// signalled says that it was told to stop, killed that it was not asked any
	// more.
	signalled, killed bool
}

// killContainer ends the current run of a container that is not the pod's end:
// its stop signal first, SIGKILL when grace is over. It does what is due now and
// says when to be called again, which is done as long as the run goes on. What
// becomes of the container then is decided as after any other exit: Nomad's own
// restart would not ask for the pod's restart policy or the back-off. But a VM
// takes no signals, so Nomad's restart is all there is for one.
func (c *Controller) killContainer(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, grace time.Duration, reason string) (again time.Duration, err error) {
	task := translate.TaskName(ct.Name)
	run, now := runOf(alloc, alloc.TaskStates[task]), c.Clock.Now()
	var k killing
	var first bool
	c.with(pod.UID, func(s *podState) {
		if first = s.kills[task].run != run; first {
			s.kills[task] = killing{run: run, deadline: now.Add(max(grace, minGrace))}
		}
		k = s.kills[task]
	})
	if first {
		c.Recorder.Event(containerRef(pod, ct.Name), corev1.EventTypeNormal, reasonKilling, reason)
	}
	left := k.deadline.Sub(now)
	vm := c.driver(pod) == "qemu"
	switch {
	case k.killed:
		return 0, nil // its end comes as an event
	case vm && !translate.RestartsAfter(pod, ct, false, 1):
		return 0, nil // nothing ends it that does not start it again
	case vm:
		if err := c.restartTask(ctx, alloc, task); err != nil {
			return 0, err
		}
		k.killed, left = true, 0
	case left <= 0:
		if err := c.signal(ctx, alloc, task, "SIGKILL"); err != nil {
			return 0, err
		}
		k.killed, left = true, 0
	case !k.signalled:
		if err := c.signal(ctx, alloc, task, stopSignal(ct)); err != nil {
			return 0, err
		}
		k.signalled = true
	default:
		return left, nil
	}
	c.with(pod.UID, func(s *podState) { s.kills[task] = k })
	return left, nil
}

// stopSignal is the container's own, or what Nomad sends too.
func stopSignal(ct *corev1.Container) string {
	if ct.Lifecycle != nil && ct.Lifecycle.StopSignal != nil {
		return string(*ct.Lifecycle.StopSignal)
	}
	return "SIGTERM"
}

// restartTask has Nomad stop the task, within its kill_timeout, and start it.
func (c *Controller) restartTask(ctx context.Context, alloc *api.Allocation, task string) error {
	if err := c.Nomad.Allocations().Restart(alloc, task, (&api.QueryOptions{Namespace: alloc.Namespace}).WithContext(ctx)); err != nil {
		return fmt.Errorf("restart task %s of allocation %s: %w", task, alloc.ID, err)
	}
	return nil
}

func (c *Controller) signal(ctx context.Context, alloc *api.Allocation, task, signal string) error {
	err := c.Nomad.Allocations().Signal(alloc, (&api.QueryOptions{Namespace: alloc.Namespace}).WithContext(ctx), task, signal)
	if err != nil {
		return fmt.Errorf("send %s to task %s of allocation %s: %w", signal, task, alloc.ID, err)
	}
	return nil
}
