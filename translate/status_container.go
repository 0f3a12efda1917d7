package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// view gathers what the container functions share.
type view struct {
	pod         *corev1.Pod
	alloc       *api.Allocation
	facts       Facts
	initialized bool
}

func (v *view) containers(specs []corev1.Container, old []corev1.ContainerStatus, init bool) []corev1.ContainerStatus {
	if len(specs) == 0 {
		return nil
	}
	out := make([]corev1.ContainerStatus, 0, len(specs))
	for i := range specs {
		var prev corev1.ContainerStatus
		for j := range old {
			if old[j].Name == specs[i].Name {
				prev = old[j]
			}
		}
		out = append(out, v.container(&specs[i], prev, init))
	}
	return out
}

func (v *view) container(c *corev1.Container, prev corev1.ContainerStatus, init bool) corev1.ContainerStatus {
	task := TaskName(c.Name)
	if prev.State.Terminated != nil && over(v.pod.Status.Phase) {
		return prev // told as final, so it is
	}
	st := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, ImageID: prev.ImageID, ContainerID: prev.ContainerID,
		RestartCount: prev.RestartCount, LastTerminationState: prev.LastTerminationState,
		Started: new(bool),
	}
	reportResources(&st, c, &prev)
	if prev.ContainerID != "" && prev.Image != "" {
		// A running container keeps its image, whatever the pod now names.
		st.Image = prev.Image
	}
	var ts *api.TaskState
	if v.alloc != nil {
		ts = v.alloc.TaskStates[task]
	}
	if ts == nil {
		// What was told stays so when Nomad says nothing of it any more.
		if prev.ContainerID != "" && v.facts.Waiting == nil || prev.State.Terminated != nil {
			return prev
		}
		st.State.Waiting = v.notStarted(init)
		return st
	}
	if !ts.StartedAt.IsZero() && !(v.facts.Starting[task] && prev.ContainerID == "") {
		st.ContainerID = ContainerID(v.alloc.ID, task)
		if n := int32(v.restarts(task, ts)); n > st.RestartCount {
			st.RestartCount = n
		}
	}
	st.State = v.state(c, ts, st.ContainerID, init)
	last := v.terminationBy(c, ts, endBefore(ts), st.ContainerID)
	switch {
	case st.State.Terminated != nil:
		// The restart is Nomad's; until it happens the count is the kubelet's.
		if st.State.Terminated.ContainerID == "" {
			st.State.Terminated.ContainerID = st.ContainerID
		}
		keepTermination(&st, prev)
	case last != nil:
		keepMessage(last, prev)
		st.LastTerminationState = corev1.ContainerState{Terminated: last}
	case prev.State.Terminated != nil:
		st.LastTerminationState = prev.State
	}
	if st.State.Running != nil {
		p, probed := v.facts.Probed[task]
		*st.Started = !probed || p.Started
		st.Ready = (!init || Sidecar(c)) && (!probed || p.Started && p.Ready)
		st.ImageID = cmp.Or(v.facts.Images[task], st.Image)
	}
	// An init container that has ended well is ready, as the kubelet reports it
	// (pkg/kubelet/prober/prober_manager.go, UpdatePodStatus); a sidecar is not.
	if init && !Sidecar(c) && st.State.Terminated != nil && st.State.Terminated.ExitCode == 0 {
		st.Ready = true
	}
	return st
}

// restarts is how often the container was started again. Nomad counts a restart
// when it decides on it, the kubelet when it happens; and it counts the tries
// before the first start.
func (v *view) restarts(task string, ts *api.TaskState) uint64 {
	n := v.ends(task, ts)
	if n > 0 && (ts.State == taskPending || ts.State == taskDead && restartDue(ts)) {
		n--
	}
	return n
}

// restartDue says whether the last restart that Nomad decided on has not happened.
func restartDue(ts *api.TaskState) bool {
	for _, e := range slices.Backward(ts.Events) {
		switch e.Type {
		case api.TaskStarted:
			return false
		case api.TaskRestarting:
			return true
		}
	}
	return false
}

// ends is how often the container has ended, as far as Nomad restarted it.
func (v *view) ends(task string, ts *api.TaskState) uint64 {
	return ts.Restarts - min(ts.Restarts, v.facts.StartFailures[task])
}

// keepTermination keeps the exit that was reported first: Nomad holds only ten
// events per task and may push the exit out.
func keepTermination(st *corev1.ContainerStatus, prev corev1.ContainerStatus) {
	was, is := prev.State.Terminated, st.State.Terminated
	if was != nil && was.StartedAt.Equal(&is.StartedAt) && was.ContainerID == is.ContainerID {
		st.State.Terminated = was
	}
}

// keepMessage keeps the message that was told of the same end, and the code of a
// VM's command: they are read but once.
func keepMessage(t *corev1.ContainerStateTerminated, prev corev1.ContainerStatus) {
	for _, was := range []*corev1.ContainerStateTerminated{prev.State.Terminated, prev.LastTerminationState.Terminated} {
		if t.Message == "" && was != nil && was.FinishedAt.Equal(&t.FinishedAt) && was.ContainerID == t.ContainerID {
			t.Message, t.ExitCode = was.Message, was.ExitCode
		}
	}
}

func (v *view) notStarted(init bool) *corev1.ContainerStateWaiting {
	if v.facts.Waiting != nil {
		return v.facts.Waiting.DeepCopy()
	}
	if !init && len(v.pod.Spec.InitContainers) > 0 && !v.initialized || init && v.alloc != nil {
		return &corev1.ContainerStateWaiting{Reason: reasonInitializing}
	}
	return &corev1.ContainerStateWaiting{Reason: reasonCreating}
}

func (v *view) state(c *corev1.Container, ts *api.TaskState, id string, init bool) corev1.ContainerState {
	if v.facts.Again {
		if e := lastEvent(ts, startFailures...); e != nil {
			return corev1.ContainerState{Waiting: startFailure(c, e, v.facts.Tries)}
		}
		if w := v.fetching(c); w != nil {
			return corev1.ContainerState{Waiting: w}
		}
		return corev1.ContainerState{Waiting: v.notStarted(init)}
	}
	switch ts.State {
	case taskRunning:
		if v.facts.Starting[TaskName(c.Name)] {
			return corev1.ContainerState{Waiting: v.notStarted(init)}
		}
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metaTime(ts.StartedAt)}}
	case taskDead:
		return corev1.ContainerState{Terminated: v.ended(c, ts, id)}
	}
	// pending: not started yet, between two runs, or over for good.
	failure := lastEvent(ts, append([]string{api.TaskTerminated}, startFailures...)...)
	if t := v.termination(c, ts, id); t != nil && failure.Type == api.TaskTerminated {
		if v.pod.DeletionTimestamp != nil || !RestartsAfter(v.pod, c, init, t.ExitCode) || v.ends(TaskName(c.Name), ts) <= 1 {
			return corev1.ContainerState{Terminated: t}
		}
		return waiting(reasonCrashLoop, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			v.facts.Backoff[TaskName(c.Name)], c.Name, v.pod.Name, v.pod.Namespace, v.pod.UID))
	}
	if failure != nil {
		return corev1.ContainerState{Waiting: startFailure(c, failure, ts.Restarts)}
	}
	if w := v.fetching(c); w != nil {
		return corev1.ContainerState{Waiting: w}
	}
	return corev1.ContainerState{Waiting: v.notStarted(init)}
}

// ended describes a task that Nomad will not start again.
func (v *view) ended(c *corev1.Container, ts *api.TaskState, id string) *corev1.ContainerStateTerminated {
	if t := v.termination(c, ts, id); t != nil {
		return t
	}
	t := &corev1.ContainerStateTerminated{
		ExitCode: 137, Reason: reasonError, ContainerID: id,
		StartedAt: metaTime(ts.StartedAt), FinishedAt: metaTime(ts.FinishedAt),
	}
	if e := lastEvent(ts, startFailures...); e != nil {
		// The kubelet's code and reason for a container that could not be started.
		t.ExitCode, t.Reason, t.Message = 128, "StartError", eventMessage(e)
	} else if n := len(ts.Events); n > 0 {
		t.Message = eventMessage(ts.Events[n-1])
	}
	return t
}

// RestartsAfter says whether the kubelet would start the container again
// after it has exited with code (pkg/api/v1/pod/util.go, ContainerShouldRestart;
// KEP-5307).
func RestartsAfter(pod *corev1.Pod, c *corev1.Container, init bool, code int32) bool {
	for _, r := range c.RestartPolicyRules {
		if r.Action != corev1.ContainerRestartRuleActionRestart || r.ExitCodes == nil {
			continue
		}
		if slices.Contains(r.ExitCodes.Values, code) == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	policy := pod.Spec.RestartPolicy
	if policy == "" {
		policy = corev1.RestartPolicyAlways
	}
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	} else if init && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	return policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}
