package translate

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reportResources tells what a container was given, which never changes: Nomad
// replaces the allocation of a job whose resources change.
func reportResources(st *corev1.ContainerStatus, c *corev1.Container, prev *corev1.ContainerStatus) {
	st.Resources, st.AllocatedResources = prev.Resources, prev.AllocatedResources
	if st.Resources == nil {
		st.Resources = &corev1.ResourceRequirements{Requests: c.Resources.Requests.DeepCopy(), Limits: c.Resources.Limits.DeepCopy()}
		st.AllocatedResources = c.Resources.Requests.DeepCopy()
	}
}

// setResize answers a wish for other resources as a kubelet does that can never
// grant it (KEP-1287).
func setResize(s *corev1.PodStatus, pod *corev1.Pod, now metav1.Time) {
	name := ""
	for _, lists := range []struct {
		specs    []corev1.Container
		statuses []corev1.ContainerStatus
	}{{pod.Spec.InitContainers, s.InitContainerStatuses}, {pod.Spec.Containers, s.ContainerStatuses}} {
		for i := range lists.statuses {
			given, wanted := lists.statuses[i].Resources, &lists.specs[i].Resources
			if given != nil && !(equality.Semantic.DeepEqual(given.Requests, wanted.Requests) && equality.Semantic.DeepEqual(given.Limits, wanted.Limits)) {
				name = lists.specs[i].Name
			}
		}
	}
	if name != "" && !over(s.Phase) {
		setCondition(s, corev1.PodCondition{
			Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible, ObservedGeneration: pod.Generation,
			Message: fmt.Sprintf("the resources of container %s cannot be changed while it runs: Nomad would replace the pod's allocation. Make a new pod", name),
		}, now)
		return
	}
	for i := range s.Conditions {
		if s.Conditions[i].Type == corev1.PodResizePending {
			s.Conditions = append(s.Conditions[:i:i], s.Conditions[i+1:]...)
			return
		}
	}
}
