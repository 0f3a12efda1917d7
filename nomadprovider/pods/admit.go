package pods

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// What kube-scheduler would not have put onto the node, but somebody who named
// the node in the pod has, is rejected as on the kubelet
// (pkg/kubelet/lifecycle/predicate.go). Room is Nomad's business, and is waited
// for; of ports it does not say no: on a client with two addresses it gives a
// port away twice, once on each (nomad/structs/network.go, AssignPorts).

const (
	byHostPort      = "hostPort"
	reasonNodePorts = "NodePorts"
	messagePorts    = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
)

// hostPorts names the ports of the node that a pod takes, as the scheduler counts
// them: those of what stays.
func hostPorts(pod *corev1.Pod) (out []string) {
	inits := len(pod.Spec.InitContainers)
	for i, ct := range containersOf(pod) {
		if i < inits && !translate.Sidecar(ct) {
			continue
		}
		for _, p := range ct.Ports {
			if p.HostPort > 0 {
				out = append(out, fmt.Sprintf("%s/%d", cmp.Or(p.Protocol, corev1.ProtocolTCP), p.HostPort))
			}
		}
	}
	return out
}

// portsTaken says whether a pod of the node that came earlier has one of the
// ports that the pod asks for.
func (c *Controller) portsTaken(pod *corev1.Pod) bool {
	for _, port := range hostPorts(pod) {
		for _, inf := range c.informers {
			others, err := inf.GetIndexer().ByIndex(byHostPort, port)
			if err != nil {
				c.Log.Error("pods are not found by their ports", "error", err)
				continue
			}
			for _, o := range others {
				other := o.(*corev1.Pod)
				if other.UID != pod.UID && other.Spec.NodeName == pod.Spec.NodeName && !finished(other) && (earlier(other, pod) || c.runs(other)) {
					return true
				}
			}
		}
	}
	return false
}

// earlier is the order of two pods that are there, by creation as on the kubelet.
func earlier(a, b *corev1.Pod) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}

// runs says whether the pod has a job.
func (c *Controller) runs(pod *corev1.Pod) bool {
	_, known := c.cache.Get(pod.UID)
	return known
}
