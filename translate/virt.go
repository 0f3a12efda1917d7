package translate

import (
	"math"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// driverVirt is HashiCorp's driver for libvirt (nomad-driver-virt). What stands
// here is by its documentation, and has been run on no libvirt.
const driverVirt = "virt"

const (
	// virtUserData is where the driver is told to find cloud-init's user-data.
	virtUserData = "secrets/user-data"
	// virtImage is where an image from a URL lies in the task's directory.
	virtImage = "local/base.img"
)

// virtAnnotations are those of VMs that the driver can follow.
var virtAnnotations = map[string]bool{AnnotationVMUserData: true, AnnotationVMUserDataFrom: true, AnnotationVMSSHKeys: true}

// virt writes the configuration of the virt driver. It configures guests itself,
// by cloud-init, and lets nobody else have its disks and its console, so a pod has
// less there than on the qemu driver; what it has not is refused. Which network
// the guest is in is the operator's to say, in the row's network_interface.
func (b *builder) virt(c *container) {
	if c.init || len(b.pod.Spec.Containers) != 1 {
		b.refuse(c.path, "a VM pod has one container and no init containers")
	}
	b.virtRefusals(c)
	c.config["image"] = b.virtImage(c)
	c.config["use_thin_copy"] = true
	c.config["hostname"] = b.hostname()
	if size := b.vmRootSize(c); size > 0 {
		c.config["primary_disk_size"] = size
	} else {
		b.refuse(c.path+".resources.limits.ephemeral-storage", "driver %s wants the size of the VM's disk", driverVirt)
	}
	b.virtSeed(c)
	// The driver makes every reserved core a CPU of the guest, and knows no shares.
	c.task.Resources.CPU = nil
	c.task.Resources.Cores = new(int(max(1, math.Ceil(float64(milliCPU(c.Container))/1000))))
}

// virtImage is the path of the image as the driver wants it.
func (b *builder) virtImage(c *container) string {
	d := Disk{}
	if c.Image == vmNoImage {
		b.refuse(c.path+".image", "driver %s boots no empty disk", driverVirt)
		return ""
	}
	b.vmImage(c, &d)
	for _, a := range b.machine.artifacts {
		a.RelativeDest = new(virtImage)
		c.task.Artifacts = append(c.task.Artifacts, a)
		return virtImage
	}
	return d.Backing
}

// virtSeed hands over user-data, from a file that is no part of the job where it
// comes from an object, and the one key that the driver takes.
func (b *builder) virtSeed(c *container) {
	if keys := strings.Split(strings.TrimSpace(b.pod.Annotations[AnnotationVMSSHKeys]), "\n"); keys[0] != "" {
		c.config["default_user_authorized_ssh_key"] = keys[0]
		if len(keys) > 1 {
			b.refuse("metadata.annotations["+AnnotationVMSSHKeys+"]", "driver %s takes one key", driverVirt)
		}
	}
	from := b.pod.Annotations[AnnotationVMUserDataFrom]
	if from == "" && b.pod.Annotations[AnnotationVMUserData] == "" {
		return
	}
	f := b.vmUserData(&b.items)
	data := "{{ " + literal(f.Data).template() + " }}"
	if f.Item != "" {
		data = `{{ with nomadVar "` + VariablePath(*b.job.ID) + `" }}{{ ` + itemExpr(f.Item) + ` }}{{ end }}`
	}
	c.task.Templates = append(c.task.Templates, &api.Template{
		EmbeddedTmpl: &data, DestPath: new(virtUserData), Perms: new("0400"), Once: new(true), ChangeMode: new("noop"),
	})
	c.config["user_data"] = virtUserData
}

func (b *builder) virtRefusals(c *container) {
	for _, f := range []struct {
		set  bool
		name string
	}{
		{len(c.Command)+len(c.Args) > 0, "command"},
		{c.Lifecycle != nil, "lifecycle"},
		{c.LivenessProbe != nil || c.ReadinessProbe != nil || c.StartupProbe != nil, "livenessProbe, readinessProbe, startupProbe"},
		{c.SecurityContext != nil && *c.SecurityContext != corev1.SecurityContext{}, "securityContext"},
		{len(c.Env)+len(c.EnvFrom) > 0, "env"},
		{len(c.VolumeDevices) > 0, "volumeDevices"},
	} {
		if f.set {
			b.refuse(c.path+"."+f.name, "is not there on driver %s: use the qemu driver", driverVirt)
		}
	}
	for _, m := range c.VolumeMounts {
		if !b.isServiceAccountVolume(m.Name) {
			b.refuse(c.path+".volumeMounts["+m.MountPath+"]", "volumes are not there on driver %s: use the qemu driver", driverVirt)
		}
	}
	for _, name := range sortedKeys(b.pod.Annotations) {
		if strings.HasPrefix(name, annotationVM) && !virtAnnotations[name] {
			b.refuse("metadata.annotations["+name+"]", "is not there on driver %s: use the qemu driver", driverVirt)
		}
	}
}
