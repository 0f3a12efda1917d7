package translate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// builder carries one translation. Mutators add to the job and record what
// they refuse, miss or approximate; none of them stops the others, so that
// the user is told everything at once.
type builder struct {
	pod   *corev1.Pod
	in    Inputs
	row   Runtime
	job   *api.Job
	group *api.TaskGroup
	// items go into the job's Variable, fileItems to the companion.
	items, fileItems items

	closed   []string
	notes    []Note
	refusals []Refusal
	missing  []string
	// awaited is what is said of claims that the pod waits for.
	awaited []string

	volumes map[string]*volume
	// companion says that the pod has one, and writesFiles that its containers
	// wait for what it writes into their volumes.
	companion, writesFiles bool
	machine                machine
	guest                  guest
	// memoryVolumesMB is the size of the pod's volumes in memory.
	memoryVolumesMB int64
	// podIP is the pod's address for a job that joins a pod that runs.
	podIP string
	// needPort asks for a port whose only use is that Nomad then tells tasks
	// the address of the allocation.
	needPort bool
}

// container is one container with what the mutators share about it.
type container struct {
	*corev1.Container
	path string // such as spec.containers[web]
	task *api.Task
	init bool
	// sidecar is an init container that stays: restartPolicy Always.
	sidecar bool
	index   int // among all, init containers first
	// config is the driver configuration under construction.
	config map[string]any
	env    *environment
}

// Job translates a pod into a Nomad job. It does not change the pod, and the
// same input yields the same job.
//
// The error is a [*RefusedError] when the virtual node cannot carry the pod
// as it is, naming every refused field, or else a [*MissingError] when the
// pod waits for ConfigMaps or Secrets.
func Job(pod *corev1.Pod, in Inputs) (*Result, error) {
	b := newBuilder(pod, in)
	b.runtime()
	b.shape()
	b.podRefusals()
	b.network()
	b.placement()
	b.collectVolumes()
	for _, c := range b.containers() {
		b.task(c)
	}
	if b.companion {
		b.companionTask()
	}
	b.finishNetwork()
	b.disk()
	return b.result()
}

func newBuilder(pod *corev1.Pod, in Inputs) *builder {
	b := &builder{pod: pod, in: in}
	b.items.keys, b.fileItems.keys = map[string]string{}, map[string]string{}
	return b
}

func (b *builder) result() (*Result, error) {
	if len(b.refusals) > 0 {
		return nil, &RefusedError{Refusals: b.refusals}
	}
	if len(b.missing)+len(b.awaited) > 0 {
		return nil, &MissingError{Messages: b.missing, Claims: b.awaited}
	}
	return &Result{Job: b.job, Items: b.items.list, Files: b.files(), ClosedGates: b.closed, Notes: b.notes}, nil
}

func (b *builder) refuse(field, format string, args ...any) {
	r := Refusal{Field: field, Reason: fmt.Sprintf(format, args...)}
	if !slices.Contains(b.refusals, r) {
		b.refusals = append(b.refusals, r)
	}
}

func (b *builder) miss(format string, args ...any) {
	m := fmt.Sprintf(format, args...)
	if !slices.Contains(b.missing, m) {
		b.missing = append(b.missing, m)
	}
}

// await is for volumes that cannot be mounted yet.
func (b *builder) await(format string, args ...any) {
	m := fmt.Sprintf(format, args...)
	if !slices.Contains(b.awaited, m) {
		b.awaited = append(b.awaited, m)
	}
}

func (b *builder) note(field, format string, args ...any) {
	n := Note{Field: field, Message: fmt.Sprintf(format, args...)}
	if !slices.Contains(b.notes, n) {
		b.notes = append(b.notes, n)
	}
}

// noteCommon is for what is not the pod's own; see [Note.Common].
func (b *builder) noteCommon(field, format string, args ...any) {
	b.notes = append(b.notes, Note{Field: field, Message: fmt.Sprintf(format, args...), Common: true})
}

// runtime looks the pod's RuntimeClass up in the driver table.
func (b *builder) runtime() {
	name := ""
	if b.pod.Spec.RuntimeClassName != nil {
		name = *b.pod.Spec.RuntimeClassName
	}
	row, ok := b.in.Node.Runtimes[name]
	switch {
	case ok:
		b.row = row
	case name == "":
		b.row = Runtime{Driver: driverDocker}
	default:
		b.refuse("spec.runtimeClassName", "virtual node %s has no runtime %q: add it to virtualNodes[].runtimes", b.in.Node.Name, name)
		b.row = Runtime{Driver: driverDocker}
	}
}

// The Nomad drivers that translation knows by name. All others are given
// their row's configuration and what every driver takes.
const (
	driverDocker = "docker"
	driverPodman = "podman"
	driverQemu   = "qemu"
	driverMock   = "mock_driver"
)

// dockerShaped reports whether the driver takes Docker's configuration keys.
func (b *builder) dockerShaped() bool {
	return b.row.Driver == driverDocker || b.row.Driver == driverPodman
}

// shape writes all of the job that does not depend on the containers.
//
// Nomad must never run a second copy of a pod behind Kubernetes' back: no
// rescheduling, no replacement of what is disconnected, no deployment.
func (b *builder) shape() {
	id := JobID(b.in.Cluster, b.pod.UID)
	b.group = &api.TaskGroup{
		Name:             new(GroupName),
		Count:            new(1),
		ReschedulePolicy: &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)},
		Disconnect: &api.DisconnectStrategy{
			LostAfter: new(8760 * time.Hour),
			Replace:   new(false),
			Reconcile: new(api.ReconcileOptionKeepOriginal),
		},
	}
	b.job = &api.Job{
		ID:          &id,
		Name:        new(b.pod.Namespace + "/" + b.pod.Name),
		Type:        new(api.JobTypeBatch),
		Priority:    new(priority(b.pod.Spec.Priority)),
		Datacenters: slices.Clone(b.in.Node.Datacenters),
		UI:          &api.JobUIConfig{Description: b.description()},
		TaskGroups:  []*api.TaskGroup{b.group},
	}
	if len(b.job.Datacenters) == 0 {
		b.job.Datacenters = []string{"*"}
	}
	for _, f := range []struct {
		to   **string
		from string
	}{
		{&b.job.Region, b.in.Node.Region},
		{&b.job.Namespace, b.in.Node.Namespace},
		{&b.job.NodePool, b.in.Node.NodePool},
	} {
		if f.from != "" {
			*f.to = new(f.from)
		}
	}
	again := func(c corev1.Container) bool { return RestartsAfter(b.pod, &c, false, 0) }
	if slices.ContainsFunc(b.pod.Spec.Containers, again) {
		// Only a service restarts a task that ended well; those of its tasks that
		// are not to be restarted then are held by their gates. Without parallel
		// updates Nomad makes no deployment for it.
		b.job.Type = new(api.JobTypeService)
		b.job.Update = &api.UpdateStrategy{MaxParallel: new(0)}
		b.group.Update = &api.UpdateStrategy{MaxParallel: new(0)}
	}
}

// description is shown by Nomad's UI. It is not exported to the tasks, as
// meta would be.
func (b *builder) description() string {
	owner := ""
	if ref := metav1.GetControllerOf(b.pod); ref != nil {
		owner = ", owner " + ref.Kind + "/" + ref.Name
	}
	return fmt.Sprintf("Kubernetes pod %s/%s%s, cluster %s, shape %d", b.pod.Namespace, b.pod.Name, owner, b.in.Cluster, ShapeVersion)
}

// restartPolicy applies the API server's default.
func (b *builder) restartPolicy() corev1.RestartPolicy {
	if b.pod.Spec.RestartPolicy == "" {
		return corev1.RestartPolicyAlways
	}
	return b.pod.Spec.RestartPolicy
}

// containers lists the pod's containers in the order of their tasks.
func (b *builder) containers() []*container {
	var out []*container
	for i := range b.pod.Spec.InitContainers {
		c := &b.pod.Spec.InitContainers[i]
		out = append(out, &container{
			Container: c, path: "spec.initContainers[" + c.Name + "]", init: true, index: i,
			sidecar: c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways,
		})
	}
	for i := range b.pod.Spec.Containers {
		c := &b.pod.Spec.Containers[i]
		out = append(out, &container{Container: c, path: "spec.containers[" + c.Name + "]", index: len(b.pod.Spec.InitContainers) + i})
	}
	return out
}

// task adds the task of one container.
func (b *builder) task(c *container) {
	b.newTask(c)
	b.lifecycle(c)
	b.restart(c)
	b.resources(c)
	switch {
	case b.row.Driver == driverQemu:
		b.vm(c)
	case b.row.Driver == driverVirt:
		b.virt(c)
	case b.dockerShaped():
		b.environment(c)
		b.dockerTask(c)
	default:
		b.environment(c)
		b.genericTask(c)
	}
	b.finishTask(c)
}

func (b *builder) newTask(c *container) {
	c.task = &api.Task{
		Name:        TaskName(c.Name),
		Driver:      b.row.Driver,
		KillTimeout: new(b.gracePeriod()),
		LogConfig:   b.logs(),
	}
	c.config = map[string]any{}
	b.group.Tasks = append(b.group.Tasks, c.task)
}

// finishTask adds what hangs on all the rest of the task.
func (b *builder) finishTask(c *container) {
	b.envTemplates(c)
	for _, k := range sortedKeys(b.row.Config) {
		if b.row.Driver != driverQemu || k != RowNetwork {
			c.config[k] = b.row.Config[k]
		}
	}
	if len(c.config) > 0 {
		c.task.Config = c.config
	}
}

// gracePeriod becomes the kill timeout of every task. Nomad takes 0 for its
// own default, so no grace is a millisecond.
func (b *builder) gracePeriod() time.Duration {
	s := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if p := b.pod.Spec.TerminationGracePeriodSeconds; p != nil {
		s = *p
	}
	if s <= 0 {
		return time.Millisecond
	}
	return time.Duration(min(s, maxSeconds)) * time.Second
}

// maxSeconds keeps durations from users within what time.Duration holds.
const maxSeconds = 100 * 365 * 24 * 3600

// The sizes of a task's log, per stream, in MB.
const (
	logFiles    = 3
	logFileSize = 10
)

// logs is always set: Nomad counts its default of 100 MB a task against the
// group's disk even where no log is collected.
func (b *builder) logs() *api.LogConfig {
	if b.row.NoLogs {
		return &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1), Disabled: new(true)}
	}
	return &api.LogConfig{MaxFiles: new(logFiles), MaxFileSizeMB: new(logFileSize)}
}

// disk sizes the group's ephemeral disk: the logs of both streams of every
// task, and what the containers request. Nomad reserves it and does not
// enforce it.
func (b *builder) disk() {
	mb := int64(0)
	for _, t := range b.group.Tasks {
		mb += int64(2 * *t.LogConfig.MaxFiles * *t.LogConfig.MaxFileSizeMB)
	}
	var main, initMax int64
	for _, c := range b.containers() {
		q := c.Resources.Requests[corev1.ResourceEphemeralStorage]
		if c.init && !c.sidecar {
			initMax = max(initMax, toMB(q))
		} else {
			main += toMB(q)
		}
		if l, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]; ok && !l.IsZero() && b.row.Driver != driverQemu {
			b.note(c.path+".resources.limits.ephemeral-storage", "is not enforced: Nomad reserves disk space and does not limit its use")
		}
	}
	mb += max(main, initMax) + toMB(b.pod.Spec.Overhead[corev1.ResourceEphemeralStorage])
	b.group.EphemeralDisk = &api.EphemeralDisk{SizeMB: new(clampInt(max(mb, 10))), Migrate: new(false), Sticky: new(false)}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
