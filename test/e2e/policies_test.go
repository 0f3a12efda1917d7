package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nothing enforces NetworkPolicies on Nomad clients: a pod is told of those that
// select it, each once, and of no other.
func TestNetworkPolicyIsToldAtThePod(t *testing.T) {
	ns := namespace(t, kube)
	make := func(name string, labels map[string]string) {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
		np.Spec.PodSelector.MatchLabels = labels
		if _, err := kube.NetworkingV1().NetworkPolicies(ns).Create(t.Context(), np, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var p *corev1.Pod
	told := func(want ...string) func() error {
		return func() error {
			list, err := kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=NetworkPolicyNotEnforced,involvedObject.uid=" + string(p.UID)})
			if err != nil {
				return err
			}
			var messages []string
			for _, e := range list.Items {
				messages = append(messages, e.Message)
			}
			for _, w := range want {
				if !strings.Contains(strings.Join(messages, "\n"), "NetworkPolicy "+w+" selects the pod") || len(messages) != len(want) {
					return fmt.Errorf("told %q, want %v", messages, want)
				}
			}
			return nil
		}
	}
	// One that is there before the pod, one that comes after it.
	make("others", map[string]string{"app": "other"})
	make("before", nil)
	p = await(t, kube, create(t, kube, ns, pod("p", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)
	eventually(t, 20*time.Second, "the event", told("before"))
	make("later", map[string]string{})
	eventually(t, 20*time.Second, "the second event", told("before", "later"))
}
