package translate

import (
	"fmt"
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

func (b *builder) hooks(c *container) {
	l := c.Lifecycle
	if l.PostStart != nil {
		b.note(c.path+".lifecycle.postStart", "is not run yet")
	}
	switch {
	case l.PreStop == nil:
	case l.PreStop.Sleep != nil:
		c.task.ShutdownDelay = time.Duration(min(max(l.PreStop.Sleep.Seconds, 0), maxSeconds)) * time.Second
	default:
		b.note(c.path+".lifecycle.preStop", "is not run yet")
	}
	if l.StopSignal != nil {
		c.task.KillSignal = string(*l.StopSignal)
	}
}

// restart writes the task's restart policy and gate.
//
// A main or prestart task that fails for good takes its siblings with it,
// which a container in Kubernetes never does. So a task that has siblings is
// never let fail: it is parked by a long delay, or restarted for ever, and
// the pods room holds it back by its gate.
func (b *builder) restart(c *container) {
	policy := b.restartPolicy()
	if c.sidecar {
		policy = corev1.RestartPolicyAlways
	} else {
		policy = b.containerRestart(c, policy)
	}
	never := policy == corev1.RestartPolicyNever
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
		// The delay is the time that the pods room has to close the gate.
		c.task.RestartPolicy = &api.RestartPolicy{
			Attempts: new(100000), Delay: new(1500 * time.Millisecond), Interval: new(200000 * time.Second),
			Mode: new(api.RestartPolicyModeDelay), RenderTemplates: new(true),
		}
	}
	b.gate(c)
}

// containerRestart handles a container's own restartPolicy and its rules.
func (b *builder) containerRestart(c *container, policy corev1.RestartPolicy) corev1.RestartPolicy {
	if len(c.RestartPolicyRules) > 0 {
		b.refuse(c.path+".restartPolicyRules", "restart rules by exit code are not there yet")
	}
	if c.RestartPolicy == nil {
		return policy
	}
	own := corev1.RestartPolicy(*c.RestartPolicy)
	// Whether a task is restarted after it ended well hangs on the job's type.
	if (own == corev1.RestartPolicyAlways) != (policy == corev1.RestartPolicyAlways) && !c.init {
		b.refuse(c.path+".restartPolicy", "%s in a pod whose restartPolicy is %s is not there yet", own, policy)
	}
	return own
}

// gate adds the template that the pods room opens and closes by a Variable;
// see [Result.ClosedGates].
func (b *builder) gate(c *container) {
	id := *b.job.ID
	path := GatePath(id, c.task.Name)
	if len(path) > maxVariablePath {
		b.refuse(c.path+".name", "is %d characters too long for Nomad, whose Variable paths take %d", len(path)-maxVariablePath, maxVariablePath)
	}
	ghost := VariablePath(id) + "/" + GroupName
	hold := fmt.Sprintf(`{{ with nomadVar %q }}{{ if eq .%s.Value %q }}{{ with nomadVar %q }}{{ end }}{{ end }}{{ end }}`,
		path, GateItem, GateHold, ghost)
	data := fmt.Sprintf(`{{ if nomadVarExists %q }}%s{{ end }}`, path, hold)
	if c.init && !c.first || b.writesFiles && (c.init || len(b.pod.Spec.InitContainers) == 0) ||
		!c.init && LastHolds(b.pod, b.row.Driver, b.probesFromTask()) {
		// Without the guard the task waits for its gate to exist.
		data = hold
		b.closed = append(b.closed, c.task.Name)
	}
	c.task.Templates = append(c.task.Templates, &api.Template{
		EmbeddedTmpl: &data,
		DestPath:     new("local/.k8s/gate"),
		// With Once the existence of the gate would not be watched.
		Once:       new(false),
		ChangeMode: new("noop"),
		Wait:       quickly(),
	})
}

// quickly replaces the 5 s that Nomad otherwise waits before it renders a
// template again.
func quickly() *api.WaitConfig {
	return &api.WaitConfig{Min: new(100 * time.Millisecond), Max: new(time.Second)}
}
