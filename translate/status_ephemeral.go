package translate

import (
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// EphemeralFacts is what is known of an ephemeral container's job.
type EphemeralFacts struct {
	// Alloc is the job's allocation, nil while there is none.
	Alloc *api.Allocation
	// Tries is how many of its jobs could not start the container.
	Tries uint64
	// State is that of a container without an allocation: why it waits, or that
	// it cannot run. Empty for one that is about to be created.
	State corev1.ContainerState
}

// EphemeralStatuses are the statuses of the pod's ephemeral containers. As the
// kubelet has it, they are never restarted and never ready; one that was told
// as terminated stays so.
func EphemeralStatuses(pod *corev1.Pod, f Facts) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range pod.Spec.EphemeralContainers {
		name := pod.Spec.EphemeralContainers[i].Name
		out = append(out, ephemeralStatus(pod, Ephemeral(pod, name), EphemeralStatus(pod, name), f))
	}
	return out
}

// EphemeralStatus is what was told last of an ephemeral container; empty before
// the first time.
func EphemeralStatus(pod *corev1.Pod, name string) corev1.ContainerStatus {
	for _, st := range pod.Status.EphemeralContainerStatuses {
		if st.Name == name {
			return st
		}
	}
	return corev1.ContainerStatus{}
}

func ephemeralStatus(pod *corev1.Pod, c *corev1.Container, prev corev1.ContainerStatus, facts Facts) corev1.ContainerStatus {
	if prev.State.Terminated != nil {
		return prev
	}
	task, f := TaskName(c.Name), facts.Ephemeral[c.Name]
	st := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: prev.ImageID, ContainerID: prev.ContainerID, State: f.State}
	var ts *api.TaskState
	if f.Alloc != nil {
		ts = f.Alloc.TaskStates[task]
	}
	switch {
	case ts == nil && st.State == (corev1.ContainerState{}) && prev.ContainerID != "":
		return prev // what was told stays so when nothing is known
	case ts == nil && st.State == (corev1.ContainerState{}):
		st.State = waiting(reasonCreating, "")
	case ts == nil:
	case ts.StartedAt.IsZero():
		st.State = waiting(reasonCreating, "")
		if e := lastEvent(ts, startFailures...); e != nil {
			st.State = corev1.ContainerState{Waiting: startFailure(c, e, f.Tries)}
		}
	default:
		st.ContainerID = ContainerID(f.Alloc.ID, task)
		if ts.State == taskRunning && !f.Alloc.ClientTerminalStatus() {
			st.ImageID = c.Image
			st.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metaTime(ts.StartedAt)}}
			break
		}
		v := view{pod: pod, alloc: f.Alloc, facts: facts}
		st.State = corev1.ContainerState{Terminated: v.ended(c, ts, st.ContainerID)}
	}
	return st
}

// ephemeralRuns says whether an ephemeral container runs.
func ephemeralRuns(s *corev1.PodStatus) bool {
	for i := range s.EphemeralContainerStatuses {
		if s.EphemeralContainerStatuses[i].State.Running != nil {
			return true
		}
	}
	return false
}
