package translate

import (
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
