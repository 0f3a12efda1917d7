package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Facts is what a pod's status needs beyond the pod and the allocation.
type Facts struct {
	Now time.Time
	Addresses
	// StartFailures counts, by task, the restarts that Nomad counted before
	// the task ran for the first time (images that could not be pulled): they
	// are no container restarts.
	StartFailures map[string]uint64
	// Backoff is the current back-off of a task that waits for its next
	// start, for the message.
	Backoff map[string]time.Duration
	// Starting are the tasks that run and whose postStart hook has not ended; the
	// kubelet does not tell of them either.
	Starting map[string]bool
	// Images are the IDs of the images that run, by task, as far as they are known.
	Images map[string]string
	// Messages are the termination messages by task.
	Messages map[string]Message
	// Probed tells by task of containers whose probes are run; the others are
	// started and ready once they run.
	Probed map[string]Probed
	// Ephemeral is what is known of ephemeral containers, by name.
	Ephemeral map[string]EphemeralFacts
	// Again is set for a pod of which nothing has started and whose job will be
	// replaced by another; Tries is how many have failed.
	Again bool
	Tries uint64
	// Unplaced is Nomad's own reason for having no place for the pod; empty
	// when it has one or has not answered yet.
	Unplaced string
	// Waiting is the reason and message of a pod that has no job yet, such as
	// CreateContainerConfigError.
	Waiting *corev1.ContainerStateWaiting
}

// Addresses is what a pod's address may depend on beside the allocation.
type Addresses struct {
	// HostIP is the address of the Nomad client that runs the allocation.
	HostIP string
	// HostNetwork is set on virtual nodes whose pods all have their client's
	// network.
	HostNetwork bool
}

// Message is what a container left in its termination log when it ended.
type Message struct {
	End  int64 // nanoseconds, of Nomad's Terminated event
	Text string
	// Code is the exit code where it is not the event's: of a VM's command.
	Code *int32
}

const (
	// ConditionPlaced tells whether Nomad has found a client for the pod.
	ConditionPlaced corev1.PodConditionType = Domain + "/Placed"

	reasonCreating     = "ContainerCreating"
	reasonInitializing = "PodInitializing"
	reasonCrashLoop    = "CrashLoopBackOff"
	reasonCompleted    = "Completed"
	reasonError        = "Error"
	reasonAllocFailed  = "NomadAllocationFailed"

	taskPending = "pending"
	taskRunning = "running"
	taskDead    = "dead"

	// taskHookFailed is the type of an event that Nomad's API package does not
	// name.
	taskHookFailed = "Task hook failed"
)

// startFailures are the events of a task that could not be started.
var startFailures = []string{
	api.TaskDriverFailure, api.TaskSetupFailure, api.TaskFailedValidation, api.TaskArtifactDownloadFailed, taskHookFailed,
}

// StartFailure says whether the event tells of a task that could not be started.
func StartFailure(e *api.TaskEvent) bool { return slices.Contains(startFailures, e.Type) }

// ContainerID is the runtime-qualified ID of a container: nomad://<allocation>/<task>.
func ContainerID(allocID, task string) string { return "nomad://" + allocID + "/" + task }

// AllocID is the allocation that a pod's status was last reported of, empty
// when none was.
func AllocID(status *corev1.PodStatus) string {
	for _, list := range [][]corev1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses} {
		for i := range list {
			if id := ContainerAlloc(list[i].ContainerID); id != "" {
				return id
			}
		}
	}
	return ""
}

// ContainerAlloc is the allocation in a [ContainerID], empty when it is none.
func ContainerAlloc(containerID string) string {
	rest, _ := strings.CutPrefix(containerID, "nomad://")
	if id, _, ok := strings.Cut(rest, "/"); ok && rest != containerID {
		return id
	}
	return ""
}

// Status is the pod's status as the kubelet would report it, from the
// allocation (nil: none yet) and from the status last reported, which it
// extends: what cannot be read back from Nomad (start time, last state, restart
// counts) is kept. Conditions of others are kept too. pod is not changed.
func Status(pod *corev1.Pod, alloc *api.Allocation, f Facts) corev1.PodStatus {
	s := *pod.Status.DeepCopy()
	if s.StartTime == nil {
		t := metav1.NewTime(f.Now.Truncate(time.Second))
		s.StartTime = &t
	}
	s.ObservedGeneration = pod.Generation
	if s.QOSClass == "" {
		s.QOSClass = qosClass(pod)
	}
	setAddresses(&s, pod, alloc, f)
	v := view{pod: pod, alloc: alloc, facts: f}
	s.InitContainerStatuses = v.containers(pod.Spec.InitContainers, s.InitContainerStatuses, true)
	v.initialized = initialized(pod, &s)
	s.ContainerStatuses = v.containers(pod.Spec.Containers, s.ContainerStatuses, false)
	s.EphemeralContainerStatuses = EphemeralStatuses(pod, f)
	s.Phase = phase(pod, &s)
	runs := alloc != nil && !alloc.ClientTerminalStatus() && anyRunning(&s) || ephemeralRuns(&s)
	if over(s.Phase) && !over(pod.Status.Phase) && runs {
		// Whoever sees a final phase may rely on nothing running any more
		// (pkg/kubelet/status/status_manager.go, mergePodStatus).
		if s.Phase = pod.Status.Phase; s.Phase == "" {
			s.Phase = corev1.PodPending
		}
	}
	if !over(pod.Status.Phase) && brokenOff(pod, alloc) {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, reasonAllocFailed, allocFailure(alloc)
	}
	if alloc != nil && s.Phase == corev1.PodFailed && s.Reason == "" && !anyStarted(&s) {
		s.Reason, s.Message = reasonAllocFailed, allocFailure(alloc)
	}
	setConditions(&s, pod, alloc, f)
	setResize(&s, pod, metav1.NewTime(f.Now.Truncate(time.Second)))
	return s
}

// Over says whether the pod has come to its end, although sidecars, which only
// serve the others, may still run.
func Over(pod *corev1.Pod, s *corev1.PodStatus) bool { return over(phase(pod, s)) }

func over(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

func setAddresses(s *corev1.PodStatus, pod *corev1.Pod, alloc *api.Allocation, f Facts) {
	if alloc == nil {
		return
	}
	if f.HostIP != "" {
		s.HostIP, s.HostIPs = f.HostIP, []corev1.HostIP{{IP: f.HostIP}}
	}
	// An address that Nomad does not tell now is not lost.
	if ips := podIPs(pod, alloc, f.Addresses); len(ips) > 0 {
		s.PodIP, s.PodIPs = ips[0].IP, ips
	}
}

func podIPs(pod *corev1.Pod, alloc *api.Allocation, a Addresses) []corev1.PodIP {
	var ips []corev1.PodIP
	switch n := alloc.NetworkStatus; {
	case pod.Spec.HostNetwork || a.HostNetwork:
		ips = append(ips, corev1.PodIP{IP: a.HostIP})
	case n != nil:
		ips = append(ips, corev1.PodIP{IP: n.Address}, corev1.PodIP{IP: n.AddressIPv6})
	}
	return slices.DeleteFunc(ips, func(ip corev1.PodIP) bool { return ip.IP == "" })
}

// PodIP is the pod's address, empty until Nomad has told it.
func PodIP(pod *corev1.Pod, alloc *api.Allocation, a Addresses) string {
	if ips := podIPs(pod, alloc, a); len(ips) > 0 {
		return ips[0].IP
	}
	return pod.Status.PodIP
}

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
