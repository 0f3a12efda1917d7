package pods

import (
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/prober"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Each pass says which probes are to run now, and the reports of those that run
// put the pod into the queue when a result changes. The kubelet's rules
// (pkg/kubelet/prober): a container has started when its startup probe has
// succeeded, only then the other probes begin, and it is ready as its readiness
// probe says.

// Reasons of the kubelet's events (pkg/kubelet/events/event.go).
const (
	reasonKilling   = "Killing"
	reasonUnhealthy = "Unhealthy"
	reasonWarning   = "ProbeWarning"
)

// probed is what is remembered of the probes of one container's run.
type probed struct {
	run string
	// The results; nil as long as there is none.
	startup, liveness, readiness *bool
	// followed says that a former self probed this run.
	followed bool
}

func (p *probed) result(kind probes.Kind) **bool {
	switch kind {
	case probes.Startup:
		return &p.startup
	case probes.Liveness:
		return &p.liveness
	}
	return &p.readiness
}

func is(result *bool, want bool) bool { return result != nil && *result == want }

// runOf names the current run of a task.
func runOf(alloc *api.Allocation, ts *api.TaskState) string {
	return fmt.Sprintf("%s/%d", alloc.ID, ts.StartedAt.UnixNano())
}

// probing is what the functions here share about a pod.
type probing struct {
	driver string
	// companion says whether the pod has one, from which its network is probed.
	companion bool
}

func (c *Controller) probing(pod *corev1.Pod, alloc *api.Allocation) probing {
	return probing{driver: c.driver(pod), companion: alloc.TaskStates[translate.CompanionTask] != nil}
}

func (p probing) runs(probe *corev1.Probe) bool { return translate.ProbeRuns(probe, p.companion) }

// probedContainers are those that may have probes: not the ordinary init
// containers.
func probedContainers(pod *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; translate.Sidecar(c) {
			out = append(out, c)
		}
	}
	for i := range pod.Spec.Containers {
		out = append(out, translate.WithReadiness(pod, &pod.Spec.Containers[i]))
	}
	return out
}

// hasProbes says whether any of the pod's containers does.
func hasProbes(pod *corev1.Pod) bool {
	for _, ct := range probedContainers(pod) {
		if ct.LivenessProbe != nil || ct.ReadinessProbe != nil || ct.StartupProbe != nil {
			return true
		}
	}
	return false
}

// workProbes hands over the probes that are to run now. Of a pod that is being
// deleted only those of readiness go on.
func (c *Controller) workProbes(pod *corev1.Pod, alloc *api.Allocation) {
	if alloc == nil || !hasProbes(pod) {
		return
	}
	about := c.probing(pod, alloc)
	target := prober.Target{Namespace: alloc.Namespace, AllocID: alloc.ID, Driver: about.driver}
	if ts := alloc.TaskStates[translate.CompanionTask]; ts != nil && ts.State == "running" && !alloc.ClientTerminalStatus() {
		target.Task = translate.CompanionTask
	}
	ip := translate.PodIP(pod, alloc, c.addresses(pod, alloc))
	var list []probes.Probe
	for _, ct := range probedContainers(pod) {
		ts := alloc.TaskStates[translate.TaskName(ct.Name)]
		if ts == nil || ts.State != "running" || alloc.ClientTerminalStatus() || c.postStartDue(pod, alloc, ct) {
			continue
		}
		state := c.probesOf(pod, alloc, ct, ts)
		for kind, spec := range dueProbes(pod, ct, about, state) {
			p := prober.Spec(ct, kind, spec, ip)
			if p.Action.Exec == nil && ip == "" {
				continue // Nomad tells it in a moment
			}
			p.Run, p.StartedAt, p.Known = state.run, ts.StartedAt, *state.result(kind)
			if kind == probes.Liveness && state.followed && p.Known == nil {
				p.Known = new(true)
			}
			list = append(list, p)
		}
	}
	c.prober.Update(c.life, pod.UID, target, list)
}

// dueProbes are the container's probes that run at this point of its run.
func dueProbes(pod *corev1.Pod, ct *corev1.Container, about probing, state probed) map[probes.Kind]*corev1.Probe {
	out := map[probes.Kind]*corev1.Probe{}
	add := func(kind probes.Kind, p *corev1.Probe) {
		if about.runs(p) {
			out[kind] = p
		}
	}
	deleted := pod.DeletionTimestamp != nil
	if about.runs(ct.StartupProbe) && !is(state.startup, true) {
		if !deleted {
			add(probes.Startup, ct.StartupProbe)
		}
		return out
	}
	add(probes.Readiness, ct.ReadinessProbe)
	if !deleted {
		add(probes.Liveness, ct.LivenessProbe)
	}
	return out
}

// probesOf is what is known of the probes of the container's current run. After
// a restart of this process that is what was last told of the same run, so that
// nobody sees it.
func (c *Controller) probesOf(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, ts *api.TaskState) (out probed) {
	run, task := runOf(alloc, ts), translate.TaskName(ct.Name)
	c.with(pod.UID, func(s *podState) {
		p := s.probed[task]
		if p == nil || p.run != run {
			p = &probed{run: run}
			if st := statusOf(pod, ct.Name); st != nil && st.State.Running != nil && st.State.Running.StartedAt.Unix() == ts.StartedAt.Unix() &&
				st.ContainerID == translate.ContainerID(alloc.ID, task) {
				p.followed = true
				if st.Started != nil && *st.Started {
					p.startup = new(true)
				}
				if st.Ready {
					p.readiness = new(true)
				}
			}
			s.probed[task] = p
		}
		out = *p
	})
	return out
}

func statusOf(pod *corev1.Pod, container string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return &list[i]
			}
		}
	}
	return nil
}

// probedFacts is what the containers' probes say of their current runs, for
// those that have probes. It is called with what is remembered of the pod.
func probedFacts(pod *corev1.Pod, alloc *api.Allocation, about probing, s *podState) map[string]translate.Probed {
	out := map[string]translate.Probed{}
	for _, ct := range probedContainers(pod) {
		startup, readiness := about.runs(ct.StartupProbe), about.runs(ct.ReadinessProbe)
		task := translate.TaskName(ct.Name)
		ts := alloc.TaskStates[task]
		if !startup && !readiness || ts == nil {
			continue
		}
		p := s.probed[task]
		if p == nil || p.run != runOf(alloc, ts) {
			p = &probed{}
		}
		out[task] = translate.Probed{Started: !startup || is(p.startup, true), Ready: !readiness || is(p.readiness, true)}
	}
	return out
}

// hasStarted says whether the sidecar's startup probe has succeeded in the
// run that was seen last, if it has one.
func (c *Controller) hasStarted(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container) bool {
	if !c.probing(pod, alloc).runs(ct.StartupProbe) {
		return true
	}
	var ok bool
	c.with(pod.UID, func(s *podState) {
		p := s.probed[translate.TaskName(ct.Name)]
		ok = p != nil && is(p.startup, true)
	})
	return ok
}

// reported takes what has come of a probe.
func (c *Controller) reported(uid types.UID, r probes.Report) {
	c.mu.Lock()
	s := c.state[uid]
	current := false
	if s != nil {
		if p := s.probed[translate.TaskName(r.Container)]; p != nil && p.run == r.Run {
			current = true
			if r.Result != nil {
				*p.result(r.Kind) = r.Result
			}
		}
	}
	c.mu.Unlock()
	pod := c.pod(uid)
	if !current || pod == nil {
		return
	}
	ref := containerRef(pod, r.Container)
	output := truncate(r.Output, 900)
	switch r.Outcome {
	case probes.Failure:
		c.Recorder.Eventf(ref, corev1.EventTypeWarning, reasonUnhealthy, "%s probe failed: %s", r.Kind, output)
	case probes.Warning:
		c.Recorder.Eventf(ref, corev1.EventTypeWarning, reasonWarning, "%s probe warning: %s", r.Kind, output)
	case probes.Unknown:
		c.Recorder.Eventf(ref, corev1.EventTypeWarning, reasonUnhealthy, "%s probe errored and resulted in unknown state: %s", r.Kind, output)
	}
	if r.Result != nil {
		c.queue.Add(uid)
	}
}

// containerRef names a container as the object of an event, as the kubelet does.
func containerRef(pod *corev1.Pod, container string) *corev1.ObjectReference {
	field := "spec.containers{" + container + "}"
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			field = "spec.initContainers{" + container + "}"
		}
	}
	return &corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, FieldPath: field,
	}
}

// killUnhealthy has the containers ended whose liveness or startup probe has
// failed.
func (c *Controller) killUnhealthy(pod *corev1.Pod, alloc *api.Allocation) {
	if !hasProbes(pod) {
		return
	}
	for i, ct := range probedContainers(pod) {
		ts := alloc.TaskStates[translate.TaskName(ct.Name)]
		if ts == nil || ts.State != "running" {
			continue
		}
		state := c.probesOf(pod, alloc, ct, ts)
		probe, what := ct.LivenessProbe, "liveness"
		switch {
		case is(state.liveness, false):
		case is(state.startup, false):
			probe, what = ct.StartupProbe, "startup"
		default:
			continue
		}
		reason := fmt.Sprintf("Container %s failed %s probe", ct.Name, what)
		sidecar := i < len(probedContainers(pod))-len(pod.Spec.Containers)
		if translate.RestartsAfter(pod, ct, sidecar, 1) {
			reason += ", will be restarted"
		}
		if c.killContainer(pod, alloc, ct, c.Clock.Now().Add(graceOf(pod, probe))) {
			c.Recorder.Event(containerRef(pod, ct.Name), corev1.EventTypeNormal, reasonKilling, reason)
		}
	}
}

// graceOf is how long a container has to end, after its probe has failed if
// there is one: the probe's own time, or the pod's.
func graceOf(pod *corev1.Pod, p *corev1.Probe) time.Duration {
	s := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		s = *pod.Spec.TerminationGracePeriodSeconds
	}
	if p != nil && p.TerminationGracePeriodSeconds != nil {
		s = *p.TerminationGracePeriodSeconds
	}
	return time.Duration(min(s, int64(100*365*24*3600))) * time.Second
}
