package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The log of a container that ends at once is whole.
func TestLogsOfContainersThatEndAtOnce(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const n = 12
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, create(t, kube, ns, pod(fmt.Sprintf("brief-%d", i), "echo one; echo two >&2; echo three")))
	}
	for _, p := range pods {
		p = await(t, kube, p, 90*time.Second, "succeeded", phase(corev1.PodSucceeded))
		// Which of the two streams comes first is not kept.
		got := logs(t, kube, p, &corev1.PodLogOptions{})
		if len(got) != len("one\ntwo\nthree\n") {
			t.Errorf("the log of %s is %q", p.Name, got)
		}
	}
}
