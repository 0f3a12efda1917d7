package pods

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The kubelet's back-off (pkg/kubelet/kubelet.go: backOffPeriod,
// MaxContainerBackOff, and a container that ran 10 minutes starts over).
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 300 * time.Second
	backoffReset = 10 * time.Minute
	// startLatency is what Nomad takes from an opened gate to the start.
	startLatency = 300 * time.Millisecond
)

// crash is the back-off of one task.
type crash struct {
	restarts uint64 // as Nomad counts, at the last look
	level    int    // restarts in a row
	// unstarted says that they were failures to start, which count by
	// themselves, as the kubelet's back-off of image pulls does.
	unstarted bool
}

// backoff is the pause before the next start: none the first time, then 10 s
// doubling to 300 s.
func (c *crash) backoff() time.Duration {
	if c.level <= 1 {
		return 0
	}
	d := backoffFirst
	for i := 2; i < c.level && d < backoffMax; i++ {
		d *= 2
	}
	return min(d, backoffMax)
}

// workGates brings every task's gate to where it belongs, and says when to
// look again.
func (c *Controller) workGates(ctx context.Context, pod *corev1.Pod, job allocs.Job, alloc *api.Allocation) (time.Duration, error) {
	if alloc == nil || alloc.ClientTerminalStatus() {
		return 0, nil
	}
	if err := c.openDisk(ctx, pod, job, alloc); err != nil {
		return 0, err
	}
	var again time.Duration
	if !c.filesReady(pod, alloc) {
		return 0, nil // that the files are there is known in the pass that wrote them
	}
	order := c.order(pod, alloc)
	for i, ct := range containersOf(pod) {
		ts, closed := alloc.TaskStates[translate.TaskName(ct.Name)], order.Closed(i)
		if closed && (ts == nil || ts.StartedAt.IsZero()) && !c.turnOf(pod, alloc, order, i) {
			continue
		}
		wait, err := c.workGate(ctx, pod, job, alloc, ct, gateKind{init: i < len(pod.Spec.InitContainers), closed: closed})
		if err != nil {
			return 0, err
		}
		again = sooner(again, wait)
	}
	return again, nil
}

// openDisk lets the task go on that copies a VM's disk out of a container image,
// once the program is there with which it does.
func (c *Controller) openDisk(ctx context.Context, pod *corev1.Pod, job allocs.Job, alloc *api.Allocation) error {
	program, disk := alloc.TaskStates[translate.VMFetchTask], alloc.TaskStates[translate.VMDiskTask]
	if program == nil || disk == nil || program.State != "dead" || program.Failed || !disk.StartedAt.IsZero() {
		return nil
	}
	return c.setGate(ctx, pod, job, translate.VMDiskTask, translate.GateOpen, false)
}

func (c *Controller) order(pod *corev1.Pod, alloc *api.Allocation) translate.Order {
	about := c.probing(pod, alloc)
	return translate.Order{Pod: pod, Driver: about.driver, Companion: about.companion, Files: c.hasFiles(pod, alloc)}
}

// turnOf says whether all is done that a container waits for, init containers
// counted first.
func (c *Controller) turnOf(pod *corev1.Pod, alloc *api.Allocation, order translate.Order, i int) bool {
	inits := len(pod.Spec.InitContainers)
	if i > 0 && i < inits {
		return c.initDone(pod, alloc, i-1)
	}
	if i >= inits && inits > 0 && order.HoldsNext(inits-1) && !c.initDone(pod, alloc, inits-1) {
		return false
	}
	for j := inits; j < i; j++ {
		if order.HoldsNext(j) && !c.startOver(pod, alloc, &pod.Spec.Containers[j-inits]) {
			return false
		}
	}
	return true
}

func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// gateKind tells an init container from others, and a task that starts closed
// from one that starts open.
type gateKind struct{ init, closed bool }

// initDone says whether the next container may start: an ordinary init container
// has ended well, a sidecar runs and has passed its postStart hook and its
// startup probe.
func (c *Controller) initDone(pod *corev1.Pod, alloc *api.Allocation, i int) bool {
	ct := &pod.Spec.InitContainers[i]
	ts := alloc.TaskStates[translate.TaskName(ct.Name)]
	if ts == nil {
		return false
	}
	if translate.Sidecar(ct) {
		return !ts.StartedAt.IsZero() && c.startOver(pod, alloc, ct) && c.hasStarted(pod, alloc, ct)
	}
	return ts.State == "dead" && !ts.Failed
}

// workGate decides for one task. The gate of a task that starts open does not
// exist unless the task is held.
func (c *Controller) workGate(ctx context.Context, pod *corev1.Pod, job allocs.Job, alloc *api.Allocation, ct *corev1.Container, k gateKind) (time.Duration, error) {
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	want := ""
	if k.closed {
		want = translate.GateOpen
	}
	var again time.Duration
	if ts != nil && ts.State == "pending" && ts.Restarts > 0 {
		if left := c.holdFor(pod, ct, ts, task, k.init); left > 0 {
			want, again = translate.GateHold, left
		}
	}
	if k.closed && want == translate.GateOpen && ts != nil && ts.Restarts == 0 && !ts.StartedAt.IsZero() {
		return again, nil // it was opened, or it would not have started
	}
	// Only the gate of a task that Nomad has restarted was ever written, maybe
	// by a former self. A plain pod costs no write.
	return again, c.setGate(ctx, pod, job, task, want, ts != nil && ts.Restarts > 0)
}

// parked is how long to hold a container that is not to be started again.
const parked = 24 * time.Hour

// holdFor is how long the task is to be held still, 0 when it may start.
func (c *Controller) holdFor(pod *corev1.Pod, ct *corev1.Container, ts *api.TaskState, task string, init bool) time.Duration {
	exit, failed := lastEnd(ts)
	if exit.IsZero() {
		return 0
	}
	if !failed && !translate.RestartsAfter(pod, ct, init, c.lastCode(pod, ts, task)) {
		return parked
	}
	var left time.Duration
	c.with(pod.UID, func(s *podState) {
		cr := s.crashes[task]
		if cr == nil {
			// After a restart of this process: all restarts in a row.
			cr = &crash{level: int(min(ts.Restarts, 16)) - 1, restarts: ts.Restarts - 1, unstarted: failed}
			s.crashes[task] = cr
		}
		if ts.Restarts != cr.restarts {
			if !ts.StartedAt.IsZero() && exit.Sub(ts.StartedAt) >= backoffReset {
				cr.level = 0
			}
			if cr.unstarted != failed {
				cr.level, cr.unstarted = 0, failed
			}
			cr.level += int(min(ts.Restarts-cr.restarts, 16))
			cr.restarts = ts.Restarts
		}
		left = exit.Add(cr.backoff() - startLatency).Sub(c.Clock.Now())
	})
	return max(left, 0)
}

// lastEnd is when the task last ended, by exit or by a failure to start.
func lastEnd(ts *api.TaskState) (at time.Time, failedStart bool) {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if e := ts.Events[i]; e.Type == api.TaskTerminated || translate.StartFailure(e) {
			return time.Unix(0, e.Time), e.Type != api.TaskTerminated
		}
	}
	return time.Time{}, false
}

// lastCode is the task's last exit code; see [translate.Message].
func (c *Controller) lastCode(pod *corev1.Pod, ts *api.TaskState, task string) int32 {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if e := ts.Events[i]; e.Type == api.TaskTerminated {
			var m translate.Message
			c.with(pod.UID, func(s *podState) { m = s.messages[task] })
			if m.End == e.Time && m.Code != nil {
				return *m.Code
			}
			return translate.ExitCode(e)
		}
	}
	return 0
}

// setGate writes what the gate should hold, unless it was the last thing
// written; "" deletes it. former says that a former self may have written it.
func (c *Controller) setGate(ctx context.Context, pod *corev1.Pod, job allocs.Job, task, want string, former bool) error {
	var have string
	var written bool
	c.with(pod.UID, func(s *podState) { have, written = s.gates[task] })
	if have == want && (written || want == "" && !former) {
		if !written {
			// No former self wrote it, as a later restart would have to assume.
			c.with(pod.UID, func(s *podState) { s.gates[task] = "" })
		}
		return nil
	}
	path := translate.GatePath(job.ID, task)
	w := (&api.WriteOptions{Namespace: job.Namespace}).WithContext(ctx)
	var err error
	if want == "" {
		_, err = c.Nomad.Variables().Delete(path, w)
	} else {
		_, _, err = c.Nomad.Variables().Update(&api.Variable{Namespace: job.Namespace, Path: path, Items: api.VariableItems{translate.GateItem: want}}, w)
	}
	if err != nil {
		return fmt.Errorf("set the gate of task %s of job %s: %w", task, job.ID, err)
	}
	c.with(pod.UID, func(s *podState) { s.gates[task] = want })
	return nil
}
