package translate

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// fieldValue resolves the downward API for environment variables, where the
// value at the start of the container stays (kubelet: podFieldSelectorRuntimeValue).
func (b *builder) fieldValue(path string) (text, error) {
	switch path {
	case "metadata.name":
		return literal(b.pod.Name), nil
	case "metadata.namespace":
		return literal(b.pod.Namespace), nil
	case "metadata.uid":
		return literal(string(b.pod.UID)), nil
	case "spec.nodeName":
		// Not the pod's own field: the dry run has none, and a pod that is
		// here is bound to this node.
		return literal(b.in.Node.Name), nil
	case "spec.serviceAccountName":
		return literal(b.pod.Spec.ServiceAccountName), nil
	case "status.hostIP", "status.hostIPs":
		return text{{run: runHostIP}}, nil
	case "status.podIP", "status.podIPs":
		if b.podIP != "" {
			return literal(b.podIP), nil
		}
		if b.ownAddress() {
			return text{{run: runPodIP}}, nil
		}
		return text{{run: runHostIP}}, nil
	}
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return literal(b.pod.Labels[key]), nil
		case "metadata.annotations":
			return literal(b.pod.Annotations[key]), nil
		}
	}
	return nil, fmt.Errorf("field label not supported: %s", path)
}

// subscript splits metadata.labels['x'] into its two parts.
func subscript(path string) (base, key string, ok bool) {
	base, rest, ok := strings.Cut(path, "['")
	if !ok || !strings.HasSuffix(rest, "']") || len(rest) < 3 || base == "" {
		return "", "", false
	}
	return base, rest[:len(rest)-2], true
}

// volumeField reports whether a downward API volume may show a field.
func volumeField(path string) bool {
	switch path {
	case "metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations":
		return true
	}
	base, _, ok := subscript(path)
	return ok && (base == "metadata.labels" || base == "metadata.annotations")
}

// resourceValue is k8s.io/kubernetes/pkg/api/v1/resource
// ExtractContainerResourceValue: the value in units of the divisor, rounded
// up. The kubelet shows the node's allocatable where a limit is absent; what
// Nomad reserves is shown here.
func (b *builder) resourceValue(c *container, ref *corev1.ResourceFieldSelector, field string) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		c = b.named(ref.ContainerName)
		if c == nil {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	part, name, ok := strings.Cut(ref.Resource, ".")
	list := c.Resources.Requests
	switch {
	case !ok || part != "limits" && part != "requests":
		return "", fmt.Errorf("unsupported container resource: %s", ref.Resource)
	case part == "limits":
		list = c.Resources.Limits
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	q, present := list[corev1.ResourceName(name)]
	if part == "requests" && !present {
		q, present = c.Resources.Limits[corev1.ResourceName(name)]
	}
	switch {
	case name == "cpu":
		if part == "limits" && !present {
			q = *resource.NewQuantity(max(1, int64(math.Ceil(float64(milliCPU(c.Container))/1000))), resource.DecimalSI)
			b.note(field, "the container has no limit; the cores reserved for it are shown")
		}
		return roundUp(float64(q.MilliValue()) / float64(divisor.MilliValue())), nil
	case name == "memory":
		if part == "limits" && !present {
			q = *resource.NewQuantity(int64(b.memory(c.Container).reserve)*mebi, resource.BinarySI)
			b.note(field, "the container has no limit; the memory reserved for it is shown")
		}
	case name == "ephemeral-storage", strings.HasPrefix(name, "hugepages-"):
	default:
		return "", fmt.Errorf("unsupported container resource: %s", ref.Resource)
	}
	return roundUp(float64(q.Value()) / float64(divisor.Value())), nil
}

func roundUp(f float64) string {
	switch f = math.Ceil(f); {
	case math.IsNaN(f):
		f = 0
	case f > math.MaxInt64/2, f < -math.MaxInt64/2:
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatInt(int64(f), 10)
}

func (b *builder) named(name string) *container {
	for _, c := range b.containers() {
		if c.Name == name {
			return c
		}
	}
	return nil
}
