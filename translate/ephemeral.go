package translate

import (
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// An ephemeral container comes to a pod that runs, and Nomad's job of a pod is
// never changed. So it is a job of its own, placed on the client of the pod's
// allocation, whose container joins the namespaces of the pod's by the names
// that the docker driver gives them: nomad_init_<allocation> holds the pod's
// network (drivers/docker/network.go), <task>-<allocation> is a task's
// (drivers/docker/driver.go). What the pod has on disk is reached from the one
// allocation's directory to the other's, side by side in the client's alloc_dir.

// Ephemeral returns the ephemeral container of that name as any other
// container, nil when the pod has none.
func Ephemeral(pod *corev1.Pod, name string) *corev1.Container {
	if ec := ephemeral(pod, name); ec != nil {
		return (*corev1.Container)(&ec.EphemeralContainerCommon)
	}
	return nil
}

func ephemeral(pod *corev1.Pod, name string) *corev1.EphemeralContainer {
	for i := range pod.Spec.EphemeralContainers {
		if ec := &pod.Spec.EphemeralContainers[i]; ec.Name == name {
			return ec
		}
	}
	return nil
}

// EphemeralJob translates an ephemeral container of a pod that runs as alloc.
// Its job has the ID [CompanionID] with the container's name; the values that
// it projects, environment and registry credentials alone, fill a Variable of
// its own. Errors are those of [Job].
func EphemeralJob(pod *corev1.Pod, name string, alloc *api.Allocation, in Inputs) (*Result, error) {
	ec := ephemeral(pod, name)
	if ec == nil {
		return nil, fmt.Errorf("pod %s/%s has no ephemeral container %q", pod.Namespace, pod.Name, name)
	}
	// What counts is whether the allocation has a companion, not whether one
	// made now would.
	in.Node.CompanionImage = ""
	if alloc.TaskStates[CompanionTask] != nil {
		in.Node.CompanionImage = CompanionTask
	}
	b := newBuilder(pod, in)
	c := &container{Container: Ephemeral(pod, name), path: "spec.ephemeralContainers[" + name + "]"}
	b.runtime()
	if b.row.Driver != driverDocker {
		b.refuse(c.path, "there is no container to join: the pod runs on driver %s", b.row.Driver)
		return b.result()
	}
	if b.ownAddress() {
		b.podIP = pod.Status.PodIP
		if n := alloc.NetworkStatus; n != nil && n.Address != "" {
			b.podIP = n.Address
		}
		if b.podIP == "" {
			return nil, fmt.Errorf("the address of pod %s/%s is not known yet", pod.Namespace, pod.Name)
		}
	}
	b.ephemeralShape(c, alloc)
	beyond := b.joinVolumes(c, alloc.ID)
	b.newTask(c)
	c.task.RestartPolicy = &api.RestartPolicy{Attempts: new(0), Mode: new(api.RestartPolicyModeFail)}
	b.resources(c)
	if r := c.task.Resources; r.MemoryMaxMB != nil && *r.MemoryMaxMB == unlimitedMemory {
		r.MemoryMB = new(minMemoryMB) // in Kubernetes it reserves nothing
	}
	b.environment(c)
	b.dockerTask(c)
	b.finishTask(c)
	b.join(c, ec.TargetContainerName, alloc.ID)
	if beyond {
		// Told as having no place rather than tried in vain.
		b.job.Constraints = append(b.job.Constraints, &api.Constraint{LTarget: "${attr.driver.docker.volumes.enabled}", Operand: "is_set"})
	}
	b.group.EphemeralDisk = &api.EphemeralDisk{
		SizeMB: new(2 * *c.task.LogConfig.MaxFiles * *c.task.LogConfig.MaxFileSizeMB), Migrate: new(false), Sticky: new(false),
	}
	if over := len(VariablePath(*b.job.ID)) - maxVariablePath; over > 0 && len(b.items.list) > 0 {
		b.refuse(c.path+".name", "is %d characters too long for the path of its Variable, of which Nomad takes %d", over, maxVariablePath)
	}
	return b.result()
}

// ephemeralShape is the job of a pod, but on the client of its allocation, and
// never run twice.
func (b *builder) ephemeralShape(c *container, alloc *api.Allocation) {
	b.shape()
	b.job.ID = new(CompanionID(b.in.Cluster, b.pod.UID, c.Name))
	b.job.Name = new(b.pod.Namespace + "/" + b.pod.Name + "/" + c.Name)
	b.job.Type = new(api.JobTypeBatch)
	b.job.Update, b.group.Update = nil, nil
	b.job.UI.Description = "Ephemeral container of " + b.job.UI.Description
	b.job.Constraints = []*api.Constraint{{LTarget: "${node.unique.id}", Operand: "=", RTarget: alloc.NodeID}}
	if d := b.dns(); d != nil {
		// Nomad writes it for the task, as it does for the pod's.
		b.group.Networks = []*api.NetworkResource{{Mode: "host", DNS: d}}
	}
}

// join puts the container into the pod's namespaces.
func (b *builder) join(c *container, target, allocID string) {
	pause := "container:nomad_init_" + allocID
	switch spec := &b.pod.Spec; {
	case spec.HostPID:
	case isTrue(spec.ShareProcessNamespace):
		c.config["pid_mode"] = pause
	case target != "":
		c.config["pid_mode"] = "container:" + TaskName(target) + "-" + allocID
	}
	if b.ownAddress() {
		c.config["network_mode"] = pause
	}
}

// seenFrom is the path of a file of an allocation, relative to the directory of
// another allocation's task on the same client.
func seenFrom(allocID, path string) string { return "../../" + allocID + "/" + path }

// joinVolumes finds the pod's volumes that the container mounts where the pod's
// other containers have them. beyond says that they lie outside of the job's own
// allocation.
func (b *builder) joinVolumes(c *container, allocID string) (beyond bool) {
	layout := newBuilder(b.pod, b.in)
	layout.runtime()
	layout.collectVolumes()
	b.volumes = map[string]*volume{}
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		v := layout.volumes[m.Name]
		if v == nil {
			continue // refused where it is mounted
		}
		field := c.path + ".volumeMounts[" + m.MountPath + "]"
		at := &volume{Volume: v.Volume, field: v.field, readOnly: v.readOnly, mustExist: true}
		b.volumes[m.Name] = at
		if v.requested {
			at.source, _ = layout.clientPath(v, "mounts in ephemeral containers")
		}
		if v.HostPath != nil || ClaimName(b.pod, v.Volume) != "" {
			if !v.requested {
				at.source, at.mustExist = v.source, v.mustExist
			}
			b.refusals = append(b.refusals, layout.refusalsOf(v)...)
			b.awaited = append(b.awaited, layout.awaited...)
			continue
		}
		switch path, inAlloc := strings.CutPrefix(v.source, "../"); {
		case v.tmpfs:
			b.refuse(field, "the memory is the own of the container that has it: use a volume on disk")
		case v.source == "":
			b.refuse(field, "volume %q is mounted by no other container, so there is nothing of it", m.Name)
		case inAlloc:
			at.source = seenFrom(allocID, path)
		default:
			// Every task has a copy.
			if task := layout.mounter(m.Name); task != "" {
				at.source = seenFrom(allocID, task+"/"+v.source)
			} else {
				b.refuse(field, "volume %q is mounted by no other container, so there is nothing of it", m.Name)
			}
		}
		beyond = beyond || at.source != ""
	}
	return beyond
}

// mounter is the task of the first container that mounts the volume.
func (b *builder) mounter(volume string) string {
	for _, c := range b.containers() {
		for _, m := range c.VolumeMounts {
			if m.Name == volume {
				return TaskName(c.Name)
			}
		}
	}
	return ""
}

// refusalsOf are those of one volume.
func (b *builder) refusalsOf(v *volume) (out []Refusal) {
	for _, r := range b.refusals {
		if r.Field == v.field || strings.HasPrefix(r.Field, v.field+".") {
			out = append(out, r)
		}
	}
	return out
}
