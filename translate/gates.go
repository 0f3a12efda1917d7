package translate

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// maxVariablePath is the longest path of a Variable (nomad/structs/variables.go).
const maxVariablePath = 128

// lifecycle places init containers before the others. Nomad starts all
// prestart tasks at once; gates put them in order.
func (b *builder) lifecycle(c *container) {
	if c.init {
		c.task.Lifecycle = &api.TaskLifecycle{Hook: api.TaskLifecycleHookPrestart, Sidecar: c.sidecar}
	}
	if c.Lifecycle != nil {
		b.hooks(c)
	}
	b.noteProbes(c)
}

// hooks are run by the pods room; of the job they need nothing.
func (b *builder) hooks(c *container) {
	l := c.Lifecycle
	for _, h := range []struct {
		name    string
		handler *corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		field := c.path + ".lifecycle." + h.name
		switch {
		case h.handler == nil:
		case h.handler.TCPSocket != nil:
			b.note(field+".tcpSocket", "is not run: it has never had a meaning in Kubernetes")
		case !HookRuns(h.handler, b.row.Driver):
			b.note(field, "is not run: driver %s runs no commands in a task and takes no signals", b.row.Driver)
		case h.handler.HTTPGet != nil && !b.companion:
			b.note(field+".httpGet", "is not run: it needs the companion (virtualNodes[].companionImage)")
		}
	}
	if l.StopSignal != nil {
		c.task.KillSignal = string(*l.StopSignal)
	}
}

// networkHooks says whether a hook makes a request from within the pod's network.
func (b *builder) networkHooks() bool {
	return slices.ContainsFunc(b.containers(), func(c *container) bool {
		l := c.Lifecycle
		return l != nil && (l.PostStart != nil && l.PostStart.HTTPGet != nil || l.PreStop != nil && l.PreStop.HTTPGet != nil)
	})
}

// HookRuns says whether there is a hook to run in a task of that driver.
func HookRuns(h *corev1.LifecycleHandler, driver string) bool {
	return h != nil && h.TCPSocket == nil && driver != driverMock
}

// Order says which of a pod's containers wait for others beyond what Nomad makes
// them wait for: its prestart tasks all start at once, and so do the main ones
// when those that do not stay have ended and the sidecars run. The kubelet
// (pkg/kubelet/kuberuntime, computePodActions and startContainer) starts one
// init container after the other, the next one after a sidecar once that has
// passed its startup probe, and nothing before the postStart hook of what
// started before it has ended.
type Order struct {
	Pod    *corev1.Pod
	Driver string
	// Companion says that the pod has one, from which its network is probed;
	// Files, that its containers wait for a companion to write their volumes.
	Companion, Files bool
}

// Closed says whether a container starts behind a closed gate; init containers
// are counted first.
func (o Order) Closed(i int) bool {
	inits := len(o.Pod.Spec.InitContainers)
	if i < inits {
		return i > 0 || o.Files
	}
	before := o.Pod.Spec.Containers[:i-inits]
	return o.Files && inits == 0 || inits > 0 && o.HoldsNext(inits-1) ||
		slices.ContainsFunc(before, func(c corev1.Container) bool { return o.postStart(&c) })
}

// HoldsNext says whether what starts after a container, counted as by
// [Order.Closed], waits for its startup probe or its postStart hook.
func (o Order) HoldsNext(i int) bool {
	if inits := len(o.Pod.Spec.InitContainers); i >= inits {
		return o.postStart(&o.Pod.Spec.Containers[i-inits])
	}
	c := &o.Pod.Spec.InitContainers[i]
	return Sidecar(c) && (ProbeRuns(c.StartupProbe, o.Companion) || o.postStart(c))
}

func (o Order) postStart(c *corev1.Container) bool {
	return c.Lifecycle != nil && HookRuns(c.Lifecycle.PostStart, o.Driver)
}

func (b *builder) order() Order {
	return Order{Pod: b.pod, Driver: b.row.Driver, Companion: b.companion, Files: b.writesFiles}
}

// restart writes the task's restart policy and gate.
//
// A main or prestart task that fails for good takes its siblings with it,
// which a container in Kubernetes never does. So a task that has siblings is
// never let fail: it is parked by a long delay, or restarted for ever, and
// the pods room holds it back by its gate.
func (b *builder) restart(c *container) {
	for _, r := range c.RestartPolicyRules {
		if r.Action != corev1.ContainerRestartRuleActionRestart {
			b.refuse(c.path+".restartPolicyRules", "action %s is not there: Nomad restarts a task, not its allocation, when it ends", r.Action)
		}
	}
	never := b.neverRestarts(c)
	alone := len(b.pod.Spec.InitContainers) == 0 && len(b.pod.Spec.Containers) == 1
	switch {
	case never && alone:
		c.task.RestartPolicy = &api.RestartPolicy{Attempts: new(0), Mode: new(api.RestartPolicyModeFail)}
		if !b.writesFiles {
			return
		}
	case never:
		// The delay alone would run the task again when the client's agent
		// restarts, hence the gate.
		c.task.RestartPolicy = &api.RestartPolicy{
			Attempts: new(1), Delay: new(8760 * time.Hour), Interval: new(87600 * time.Hour),
			Mode: new(api.RestartPolicyModeDelay), RenderTemplates: new(true),
		}
	default:
		delay := delayAmong
		if alone && !b.companion {
			delay = delayAlone
		}
		c.task.RestartPolicy = &api.RestartPolicy{
			Attempts: new(100000), Delay: new(delay), Interval: new(200000 * time.Second),
			Mode: new(api.RestartPolicyModeDelay), RenderTemplates: new(true),
		}
	}
	b.gate(c)
}

// The delay before a task is restarted, to which Nomad adds up to a quarter, is
// the time that the pods room has to close the gate. A client tells of the end
// of an allocation's only task at once, else within a second
// (client/allocrunner, client.go: allocSyncIntv); on two busy cores gates were
// closed within 0.45 s of an end, among siblings within 1.1 s.
const (
	delayAlone = 500 * time.Millisecond
	delayAmong = 1300 * time.Millisecond
)

// neverRestarts says whether no exit code starts the container again.
func (b *builder) neverRestarts(c *container) bool {
	if len(c.RestartPolicyRules) > 0 {
		return false
	}
	policy := b.restartPolicy()
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	return policy == corev1.RestartPolicyNever
}

// gate adds the template that the pods room opens and closes by a Variable;
// see [Result.ClosedGates].
func (b *builder) gate(c *container) {
	id := *b.job.ID
	path := GatePath(id, c.task.Name)
	if len(path) > maxVariablePath {
		b.refuse(c.path+".name", "is %d characters too long for Nomad, whose Variable paths take %d", len(path)-maxVariablePath, maxVariablePath)
	}
	hold := b.heldGate(c.task.Name)
	data := fmt.Sprintf(`{{ if nomadVarExists %q }}%s{{ end }}`, path, hold)
	if b.order().Closed(c.index) {
		// Without the guard the task waits for its gate to exist.
		data = hold
		b.closed = append(b.closed, c.task.Name)
	}
	c.task.Templates = append(c.task.Templates, gateTemplate(data))
}

// heldGate is the content of a gate that waits for its Variable, and as long as
// that says so.
func (b *builder) heldGate(task string) string {
	id := *b.job.ID
	return fmt.Sprintf(`{{ with nomadVar %q }}{{ if eq .%s.Value %q }}{{ with nomadVar %q }}{{ end }}{{ end }}{{ end }}`,
		GatePath(id, task), GateItem, GateHold, VariablePath(id)+"/"+GroupName)
}

func gateTemplate(data string) *api.Template {
	return &api.Template{
		EmbeddedTmpl: &data,
		DestPath:     new("local/.k8s/gate"),
		// With Once the existence of the gate would not be watched.
		Once:       new(false),
		ChangeMode: new("noop"),
		Wait:       quickly(),
	}
}

// quickly replaces the 5 s that Nomad otherwise waits before it renders a
// template again.
func quickly() *api.WaitConfig {
	return &api.WaitConfig{Min: new(100 * time.Millisecond), Max: new(time.Second)}
}
