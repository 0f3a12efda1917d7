package translate

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestResizeIsInfeasible(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
	}}}}}
	pending := func() *corev1.PodCondition {
		pod.Status = Status(pod, nil, Facts{Now: time.Unix(100, 0)})
		for i := range pod.Status.Conditions {
			if pod.Status.Conditions[i].Type == corev1.PodResizePending {
				return &pod.Status.Conditions[i]
			}
		}
		return nil
	}
	if c := pending(); c != nil {
		t.Errorf("a new pod has %+v", c)
	}
	pod.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("200m")
	if c := pending(); c == nil || c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonInfeasible {
		t.Errorf("%+v", c)
	}
	if q := pod.Status.ContainerStatuses[0].Resources.Requests[corev1.ResourceCPU]; q.String() != "100m" {
		t.Errorf("said to have %s", &q)
	}
	// The same in other words is no other wish.
	pod.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("0.1")
	if c := pending(); c != nil {
		t.Errorf("the wish is taken back: %+v", c)
	}
}
