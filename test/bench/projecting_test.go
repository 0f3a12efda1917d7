package bench

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BenchmarkProjectingPods counts what pods write that take their environment
// from a ConfigMap.
func BenchmarkProjectingPods(b *testing.B) {
	const n = 20
	h := hy
	ns := h.namespace(b)
	ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
	defer cancel()
	_, err := h.kube.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "m"}, Data: map[string]string{"COLOUR": "blue"},
	}, metav1.CreateOptions{})
	must(b, err)
	must(b, h.quiet(ctx))
	m := h.measure(b)
	pods, err := h.create(ctx, ns, n, func(name string) *corev1.Pod {
		p := mockPod(name)
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}}}
		return p
	})
	must(b, err)
	times, err := h.pods.await(ctx, pods)
	must(b, err)
	x := m.end(b, times[pods[n-1].UID].running)
	x.Updates = h.pods.updates(pods)
	must(b, h.removePods(b.Context(), ns))

	writes := float64(x.Nomad["variable put"]) / n
	b.ReportMetric(writes, "variable-writes/pod")
	report.Goal(b, fmt.Sprintf("%d pods with a ConfigMap: Variable writes a pod", n), fmt.Sprintf("%.2f", writes),
		fmt.Sprintf("%.2f registers, %.2f status patches a pod, %.2f that changed something",
			float64(x.Nomad["register"])/n, x.Kube[statusPatches]/n, float64(x.Updates)/n),
		"at most 1", writes <= 1)
	report.Detail("projecting", x)
}
