package node

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// labelType is how virtual nodes are told from others by convention, and
	// how a Node of ours is told from a kubelet's.
	labelType      = "type"
	labelTypeValue = "virtual-kubelet"

	// labelKVM says whether clients run VMs by KVM: true, some or false.
	labelKVM = translate.Domain + "/kvm"

	// AnnotationProvider marks a Node that this program registered.
	AnnotationProvider = translate.Domain + "/provider"
	// annotationTaints lists the taints that this program put on the Node, so
	// that those taken out of the configuration can be taken off again.
	annotationTaints = translate.Domain + "/applied-taints"
)

// ours tells whether a Node may be managed by this program.
func ours(n *corev1.Node) bool {
	return n.Labels[labelType] == labelTypeValue || n.Annotations[AnnotationProvider] != ""
}

// labels of the Node; the configured ones win over all but the two that say
// what the Node is.
func labels(name, pool, region string, network translate.NetworkMode, sum poolSummary, configured map[string]string) map[string]string {
	os, arch := orDefault(sum.sample.OS, "linux"), orDefault(sum.arch, runtime.GOARCH)
	l := map[string]string{
		corev1.LabelOSStable:              os,
		corev1.LabelArchStable:            arch,
		"kubernetes.io/role":              "agent",
		translate.Domain + "/node-pool":   pool,
		translate.Domain + "/network":     strings.ReplaceAll(string(network), "/", "-"), // no slash in a label's value
		corev1.LabelNodeExcludeBalancers:  "true",
		translate.Domain + "/region":      region,
		corev1.LabelTopologyRegion:        region,
		translate.Domain + "/provided-by": "nomad",
		labelKVM:                          sum.kvmLabel(),
	}
	for k, v := range l {
		if v == "" || len(validation.IsValidLabelValue(v)) > 0 {
			delete(l, k)
		}
	}
	maps.Copy(l, configured)
	l[labelType] = labelTypeValue
	l[corev1.LabelHostname] = name
	return l
}

// mergeTaints returns the taints a Node should have: the configured ones, and
// those of others, such as Kubernetes' own not-ready and unreachable. applied
// names what this program put there before.
func mergeTaints(present, configured []corev1.Taint, applied string) []corev1.Taint {
	mine := map[string]bool{}
	var names []string
	if json.Unmarshal([]byte(applied), &names) == nil {
		for _, n := range names {
			mine[n] = true
		}
	}
	out := append([]corev1.Taint(nil), configured...)
	for _, t := range configured {
		mine[taintName(t)] = true
	}
	for _, t := range present {
		if !mine[taintName(t)] {
			out = append(out, t)
		}
	}
	return out
}

// taintName is what is unique among a Node's taints.
func taintName(t corev1.Taint) string { return t.Key + ":" + string(t.Effect) }

func taintNames(taints []corev1.Taint) string {
	names := make([]string, 0, len(taints))
	for _, t := range taints {
		names = append(names, taintName(t))
	}
	b, _ := json.Marshal(names) // of strings: cannot fail
	return string(b)
}

// sameTaints compares regardless of order and of when they were added.
func sameTaints(a, b []corev1.Taint) bool {
	if len(a) != len(b) {
		return false
	}
	in := map[string]bool{}
	for _, t := range a {
		in[taintName(t)+"="+t.Value] = true
	}
	for _, t := range b {
		if !in[taintName(t)+"="+t.Value] {
			return false
		}
	}
	return true
}

// foreignError says whose Node it is that has our name.
func foreignError(n *corev1.Node) error {
	return fmt.Errorf("node %q exists and belongs to another kubelet (version %s, no label %s=%s): "+
		"give the virtual node another name, or delete that Node if its kubelet is gone",
		n.Name, orDefault(strings.TrimSpace(n.Status.NodeInfo.KubeletVersion), "unknown"), labelType, labelTypeValue)
}
