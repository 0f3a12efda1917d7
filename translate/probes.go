package translate

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Probed is what a container's probes have come to in its current run.
type Probed struct {
	// Started is set without a startup probe, or when it has succeeded; Ready
	// without a readiness probe, or when its last result was a success.
	Started, Ready bool
}

// ProbeRuns says whether a probe is run: commands everywhere, what goes over the
// network where the pod has a companion, which can do it.
func ProbeRuns(p *corev1.Probe, companion bool) bool {
	return p != nil && (p.Exec != nil || companion)
}

// vmReady are the commands whose success says that a VM has started.
var vmReady = map[string][]string{
	"agent": {"true"},
	// 2 is an end with warnings (cloud-init, doc/rtd/explanation/return_codes.rst).
	"cloud-init": {"sh", "-c", "cloud-init status --wait; code=$?; [ $code -eq 0 ] || [ $code -eq 2 ]"},
}

// WithReadiness is a container of a pod with the startup probe that
// [AnnotationVMReady] stands for, which has no end of patience.
func WithReadiness(pod *corev1.Pod, c *corev1.Container) *corev1.Container {
	command := vmReady[pod.Annotations[AnnotationVMReady]]
	if command == nil || pod.Spec.RuntimeClassName == nil || c.StartupProbe != nil {
		return c
	}
	out := c.DeepCopy()
	out.StartupProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}},
		PeriodSeconds: 2, TimeoutSeconds: 600, FailureThreshold: math.MaxInt32,
	}
	return out
}

// ProbeCommand is the command of an exec probe, with $(NAME) expanded from what
// the container's env gives as it stands; the rest is left as it is
// (pkg/kubelet/container/helpers.go, ExpandContainerCommandOnlyStatic).
func ProbeCommand(c *corev1.Container, command []string) []string {
	env := map[string]text{}
	for i := range c.Env {
		env[c.Env[i].Name] = literal(c.Env[i].Value)
	}
	out := make([]string, len(command))
	for i, s := range command {
		for _, seg := range expand(s, func(name string) (text, bool) { v, ok := env[name]; return v, ok }) {
			out[i] += seg.lit
		}
	}
	return out
}

// networkProbes reports whether the containers have a probe that goes over the network.
func (b *builder) networkProbes() bool {
	return slices.ContainsFunc(b.containers(), func(c *container) bool {
		return slices.ContainsFunc(c.probes(), func(p namedProbe) bool { return p.Exec == nil })
	})
}

type namedProbe struct {
	name string
	*corev1.Probe
}

// probes are those that the container has. Ordinary init containers can have none.
func (c *container) probes() []namedProbe {
	all := []namedProbe{{"livenessProbe", c.LivenessProbe}, {"readinessProbe", c.ReadinessProbe}, {"startupProbe", c.StartupProbe}}
	return slices.DeleteFunc(all, func(p namedProbe) bool { return p.Probe == nil || c.init && !c.sidecar })
}

// noteProbes tells of probes that are not run.
func (b *builder) noteProbes(c *container) {
	for _, p := range c.probes() {
		switch {
		case ProbeRuns(p.Probe, b.companion):
		case b.in.Node.CompanionImage == "":
			b.note(c.path+"."+p.name, "is not run: set virtualNodes[].companionImage, from which the pod's network is probed")
		default:
			b.note(c.path+"."+p.name, "is not run: pods of driver %s have no companion, from which their network is probed", b.row.Driver)
		}
	}
}
