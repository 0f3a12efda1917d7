package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sidecar says whether an init container is a native sidecar.
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// initialized says whether the main containers may run: every init container
// has ended well, every sidecar has started. Once one of them has run the pod
// stays initialized, whatever its sidecars do.
func initialized(pod *corev1.Pod, s *corev1.PodStatus) bool {
	for i := range s.ContainerStatuses {
		if s.ContainerStatuses[i].ContainerID != "" {
			return true
		}
	}
	if len(s.InitContainerStatuses) < len(pod.Spec.InitContainers) {
		return false
	}
	for i := range pod.Spec.InitContainers {
		st := &s.InitContainerStatuses[i]
		if Sidecar(&pod.Spec.InitContainers[i]) {
			if st.State.Running == nil && st.State.Terminated == nil || st.State.Running != nil && !started(st) {
				return false
			}
		} else if t := st.State.Terminated; t == nil || t.ExitCode != 0 {
			return false
		}
	}
	return true
}

func started(st *corev1.ContainerStatus) bool { return st.Started == nil || *st.Started }

// phase follows the kubelet (pkg/kubelet/kubelet_pods.go, getPhase). A phase
// that is final stays.
func phase(pod *corev1.Pod, s *corev1.PodStatus) corev1.PodPhase {
	if over(s.Phase) {
		return s.Phase
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		t := s.InitContainerStatuses[i].State.Terminated
		if t == nil || t.ExitCode == 0 || Sidecar(c) {
			continue
		}
		if !RestartsAfter(pod, c, true, t.ExitCode) {
			return corev1.PodFailed
		}
	}
	if !initialized(pod, s) {
		return corev1.PodPending
	}
	var running, waiting, stopped, failed int
	for i := range pod.Spec.Containers {
		st := &s.ContainerStatuses[i]
		switch {
		case st.State.Running != nil:
			running++
		case st.State.Terminated != nil:
			if RestartsAfter(pod, &pod.Spec.Containers[i], false, st.State.Terminated.ExitCode) {
				running++ // about to run again
				continue
			}
			stopped++
			if st.State.Terminated.ExitCode != 0 {
				failed++
			}
		case st.LastTerminationState.Terminated != nil || st.ContainerID != "":
			running++ // in back-off
		default:
			waiting++
		}
	}
	switch {
	case waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case failed > 0:
		return corev1.PodFailed
	default:
		return corev1.PodSucceeded
	}
}

// brokenOff says whether Nomad has given the allocation up and ended containers
// of the pod for that. Those may well have ended in order when they were told to,
// but what they were there for is not done.
func brokenOff(pod *corev1.Pod, alloc *api.Allocation) bool {
	if alloc == nil || alloc.ClientStatus != api.AllocClientStatusFailed {
		return false
	}
	return slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		ts := alloc.TaskStates[TaskName(c.Name)]
		if ts == nil || ts.StartedAt.IsZero() {
			return false
		}
		end := LastEnd(ts)
		return end != nil && slices.ContainsFunc(ts.Events, func(e *api.TaskEvent) bool {
			given := e.Type == api.TaskSetupFailure || e.Type == api.TaskSiblingFailed
			return given && e.Time >= ts.StartedAt.UnixNano() && e.Time <= end.Time
		})
	})
}

// allocFailure is why Nomad gave an allocation up, as well as it says.
func allocFailure(alloc *api.Allocation) string {
	for _, task := range sortedKeys(alloc.TaskStates) {
		if e := lastEvent(alloc.TaskStates[task], api.TaskSetupFailure); e != nil {
			return alloc.ClientDescription + ": " + eventMessage(e)
		}
	}
	return alloc.ClientDescription
}

// Final turns a status into that of a pod whose allocation is over: what has
// not ended is told as ended, with the kubelet's exit code and reason for a
// container whose end nobody saw, and the phase is final. Containers that
// never had their turn are left waiting
// (pkg/kubelet/status/status_manager.go, TerminatePod).
func Final(pod *corev1.Pod, s corev1.PodStatus, f Facts) corev1.PodStatus {
	s = *s.DeepCopy()
	reached := initialized(pod, &s)
	for i := range s.InitContainerStatuses {
		st := &s.InitContainerStatuses[i]
		end(st, reached || st.ContainerID != "", f)
	}
	failed := !reached
	for i := range s.ContainerStatuses {
		st := &s.ContainerStatuses[i]
		end(st, reached, f)
		failed = failed || st.State.Terminated == nil || st.State.Terminated.ExitCode != 0
	}
	if !over(s.Phase) {
		s.Phase = corev1.PodSucceeded
		if failed {
			s.Phase = corev1.PodFailed
		}
	}
	setConditions(&s, pod, nil, f)
	return s
}

// end makes a container's status that of one that is over.
func end(st *corev1.ContainerStatus, reached bool, f Facts) {
	st.Started = new(bool)
	// An init container that has ended well stays ready, as the kubelet has it.
	st.Ready = st.Ready && st.State.Terminated != nil
	if st.State.Terminated != nil || !reached {
		return
	}
	t := &corev1.ContainerStateTerminated{
		ExitCode: 137, Reason: "ContainerStatusUnknown", FinishedAt: metaTime(f.Now), ContainerID: st.ContainerID,
		Message: "The container could not be located when the pod was terminated",
	}
	if last := st.LastTerminationState.Terminated; st.State.Running == nil && last != nil {
		t = last.DeepCopy()
	}
	st.State = corev1.ContainerState{Terminated: t}
}

// Failed is the final status of a pod that cannot run, or that has ended in
// another way than by its containers; alloc is nil when there is none (any
// more).
func Failed(pod *corev1.Pod, alloc *api.Allocation, reason, message string, f Facts) corev1.PodStatus {
	s := Status(pod, alloc, f)
	s.Phase, s.Reason, s.Message = corev1.PodFailed, reason, message
	if alloc == nil && AllocID(&pod.Status) == "" {
		// As for a pod that the kubelet rejects, there is nothing to say of its
		// containers.
		s.InitContainerStatuses, s.ContainerStatuses = nil, nil
	}
	return Final(pod, s, f)
}

// setConditions writes the kubelet's conditions and ours; those of others,
// PodScheduled among them, are left as they are.
func setConditions(s *corev1.PodStatus, pod *corev1.Pod, alloc *api.Allocation, f Facts) {
	over, initDone := over(s.Phase), initialized(pod, s)
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: pod.Generation}
		if ok {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, "", ""
		}
		setCondition(s, c, metav1.NewTime(f.Now.Truncate(1e9)))
	}
	completed := ""
	if over {
		completed = "PodFailed"
		if s.Phase == corev1.PodSucceeded {
			completed = "PodCompleted"
		}
	}
	unready := append(unreadySidecars(pod, s), unreadyNames(s.ContainerStatuses)...)
	reason := func(r string) string {
		if completed != "" {
			return completed
		}
		return r
	}
	message := ""
	if len(unready) > 0 && !over {
		message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	set(corev1.PodReadyToStartContainers, !over && (s.PodIP != "" || alloc != nil && anyStarted(s)), "", "")
	// Whatever has become of the pod, it was not initialized.
	set(corev1.PodInitialized, initDone || s.Phase == corev1.PodSucceeded, "ContainersNotInitialized", initMessage(s, initDone))
	set(corev1.ContainersReady, !over && len(unready) == 0 && initDone, reason("ContainersNotReady"), message)
	ready, gateMsg := len(unready) == 0 && initDone, ""
	if ready {
		ready, gateMsg = gates(pod, s)
	}
	switch {
	case !over && alloc != nil && alloc.ClientStatus == api.AllocClientStatusUnknown:
		set(corev1.PodReady, false, "NomadClientDisconnected", "Nomad has lost contact with the client that runs the pod")
	case !over && gateMsg != "":
		set(corev1.PodReady, false, "ReadinessGatesNotReady", gateMsg)
	default:
		set(corev1.PodReady, !over && ready, reason("ContainersNotReady"), message)
	}
	switch {
	case f.Unplaced != "" && alloc == nil && !over:
		set(ConditionPlaced, false, "Unschedulable", f.Unplaced)
	case alloc != nil && hasCondition(s, ConditionPlaced):
		set(ConditionPlaced, true, "", "")
	}
}

func setCondition(s *corev1.PodStatus, c corev1.PodCondition, now metav1.Time) {
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		c.LastTransitionTime, c.LastProbeTime = old.LastTransitionTime, old.LastProbeTime
		if old.Status != c.Status {
			c.LastTransitionTime = now
		}
		*old = c
		return
	}
	c.LastTransitionTime = now
	s.Conditions = append(s.Conditions, c)
}

func hasCondition(s *corev1.PodStatus, t corev1.PodConditionType) bool {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return true
		}
	}
	return false
}

func unreadyNames(statuses []corev1.ContainerStatus) []string {
	var names []string
	for i := range statuses {
		if !statuses[i].Ready {
			names = append(names, statuses[i].Name)
		}
	}
	return names
}

// unreadySidecars names the sidecars that are not ready: they count as the main
// containers do.
func unreadySidecars(pod *corev1.Pod, s *corev1.PodStatus) []string {
	var names []string
	for i := range s.InitContainerStatuses {
		if Sidecar(&pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			names = append(names, s.InitContainerStatuses[i].Name)
		}
	}
	return names
}

func anyRunning(s *corev1.PodStatus) bool {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}

func anyStarted(s *corev1.PodStatus) bool {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			if list[i].ContainerID != "" {
				return true
			}
		}
	}
	return false
}

func initMessage(s *corev1.PodStatus, done bool) string {
	if done {
		return ""
	}
	return fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(unreadyNames(s.InitContainerStatuses), " "))
}

// gates checks the pod's readiness gates; message names those that are not true.
func gates(pod *corev1.Pod, s *corev1.PodStatus) (ok bool, message string) {
	var missing []string
	for _, g := range pod.Spec.ReadinessGates {
		status := corev1.ConditionStatus("")
		for i := range s.Conditions {
			if s.Conditions[i].Type == g.ConditionType {
				status = s.Conditions[i].Status
			}
		}
		switch status {
		case corev1.ConditionTrue:
		case "":
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		default:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %s", g.ConditionType, status))
		}
	}
	return len(missing) == 0, strings.Join(missing, ", ")
}

// qosClass follows pkg/apis/core/v1/helper/qos: the API server sets it too,
// this is for pods that come without.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	guaranteed, bestEffort := true, true
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				req, lim := list[i].Resources.Requests[name], list[i].Resources.Limits[name]
				if !req.IsZero() || !lim.IsZero() {
					bestEffort = false
				}
				if lim.IsZero() || !req.IsZero() && req.Cmp(lim) != 0 {
					guaranteed = false
				}
			}
		}
	}
	switch {
	case bestEffort:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// UnplacedReason puts Nomad's metrics of a failed placement into words, the
// same that nomad job status prints.
func UnplacedReason(m *api.AllocationMetric) string {
	if m == nil {
		return ""
	}
	var parts []string
	add := func(n int, what string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, what))
		}
	}
	if m.NodesEvaluated == 0 {
		parts = append(parts, fmt.Sprintf("no client of node pool %q is ready and eligible in the job's datacenters", m.NodePool))
	}
	for _, k := range sortedKeys(m.ConstraintFiltered) {
		add(m.ConstraintFiltered[k], fmt.Sprintf("clients filtered by constraint %q", k))
	}
	for _, k := range sortedKeys(m.DimensionExhausted) {
		add(m.DimensionExhausted[k], fmt.Sprintf("clients without enough %s", k))
	}
	for _, q := range m.QuotaExhausted {
		parts = append(parts, "quota reached: "+q)
	}
	if len(parts) == 0 {
		add(m.NodesEvaluated, "clients evaluated, none fits")
	}
	return strings.Join(parts, ", ")
}
