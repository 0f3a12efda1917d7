package pods

import (
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// visibleServices are the Services whose variables the pod sees, sorted by
// name: its own namespace's unless it declines, and always default/kubernetes
// (pkg/kubelet/kubelet_pods.go, getServiceEnvVarMap).
func (c *Controller) visibleServices(pod *corev1.Pod) ([]corev1.Service, error) {
	list, err := c.services.Services(metav1.NamespaceAll).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list Services: %w", err)
	}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	var out []corev1.Service
	for _, s := range list {
		master := s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes"
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || !master && (!links || s.Namespace != pod.Namespace) {
			continue
		}
		out = append(out, *s)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}
