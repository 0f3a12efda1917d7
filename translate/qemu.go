package translate

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// vmOverheadMB is what qemu takes beside the guest's memory. The task's
// memory is a hard limit on both.
const vmOverheadMB = 128

// vmDisk is where an image from a URL lies in the task's directory.
const vmDisk = "local/disk.img"

// vm writes the configuration of Nomad's qemu driver (drivers/qemu/driver.go).
func (b *builder) vm(c *container) {
	if c.init || len(b.pod.Spec.Containers) != 1 {
		b.refuse(c.path, "a VM pod has one container and no init containers")
	}
	b.vmRefusals(c)
	args := []string{
		// qemu takes the last -m; the driver's own is the task's memory.
		"-m", strconv.Itoa(b.memory(c.Container).reserve),
		"-smp", strconv.FormatInt(max(1, min(int64(math.Ceil(float64(milliCPU(c.Container))/1000)), 255)), 10),
	}
	args = append(args, b.vmImage(c)...)
	args = append(args, b.vmNetwork(c)...)
	c.config["accelerator"] = "tcg"
	c.config["drive_interface"] = "virtio"
	// A power button for the guest, and the monitor off the serial console,
	// which is what the logs show.
	c.config["graceful_shutdown"] = true
	c.config["args"] = escapeAll(args)
}

// vmImage names the boot disk. A disk that the client holds is shared, so
// writes to it go to a temporary file; one from a URL is the pod's own.
func (b *builder) vmImage(c *container) (args []string) {
	field := c.path + ".image"
	switch {
	case strings.HasPrefix(c.Image, "https://"), strings.HasPrefix(c.Image, "http://"):
		if strings.Contains(c.Image, "${") || strings.ContainsAny(c.Image, " \t\n") {
			b.refuse(field, "%q is not a URL", c.Image)
		}
		a := &api.TaskArtifact{
			GetterSource:  new(c.Image),
			GetterMode:    new("file"),
			GetterOptions: map[string]string{"archive": "false"},
			RelativeDest:  new(vmDisk),
		}
		if sum := b.pod.Annotations[AnnotationImageChecksum]; sum != "" {
			a.GetterOptions["checksum"] = sum
		} else {
			b.note(field, "is not verified: give its checksum in annotation %s", AnnotationImageChecksum)
		}
		c.task.Artifacts = []*api.TaskArtifact{a}
		c.config["image_path"] = vmDisk
		return nil
	case !path.IsAbs(c.Image), slices.Contains(strings.Split(c.Image, "/"), ".."), strings.ContainsAny(c.Image, ",\n"):
		b.refuse(field, "%q is neither an http(s) URL nor an absolute path of a disk image on the Nomad client", c.Image)
	case !under(path.Clean(c.Image), b.in.Node.HostAccess.ImagePaths):
		b.refuse(field, "path %s of the Nomad client is not allowed: add its directory to virtualNodes[].hostAccess.imagePaths", path.Clean(c.Image))
	}
	c.config["image_path"] = escapeHCL(path.Clean(c.Image))
	b.note(field, "what the VM writes to its disk is lost when it stops")
	return []string{"-snapshot"}
}

// vmNetwork gives the guest qemu's user network within the allocation's
// network namespace, and forwards the container's ports from the pod's
// address to it.
func (b *builder) vmNetwork(c *container) []string {
	netdev := "user,id=net0"
	for _, p := range c.Ports {
		protocol := strings.ToLower(string(p.Protocol))
		switch {
		case protocol == "":
			protocol = "tcp"
		case p.Protocol == corev1.ProtocolSCTP:
			b.refuse(fmt.Sprintf("%s.ports[%d].protocol", c.path, p.ContainerPort), "a VM's ports are TCP or UDP")
			continue
		}
		if !b.ownAddress() && p.HostPort == 0 {
			b.note(fmt.Sprintf("%s.ports[%d]", c.path, p.ContainerPort), "is not reachable: the VM has the client's network and the port no hostPort")
			continue
		}
		netdev += fmt.Sprintf(",hostfwd=%s::%d-:%d", protocol, p.ContainerPort, p.ContainerPort)
	}
	return []string{"-netdev", netdev, "-device", "virtio-net-pci,netdev=net0"}
}

// vmRefusals lists what has a meaning only for a container's process.
func (b *builder) vmRefusals(c *container) {
	for _, f := range []struct {
		set  bool
		name string
	}{
		{len(c.Command) > 0, "command"},
		{len(c.Args) > 0, "args"},
		{c.WorkingDir != "", "workingDir"},
		{len(c.EnvFrom) > 0, "envFrom"},
		{len(c.Env) > 0, "env"},
		{len(c.VolumeDevices) > 0, "volumeDevices"},
		{c.Lifecycle != nil && (c.Lifecycle.PreStop != nil && c.Lifecycle.PreStop.Sleep == nil || c.Lifecycle.StopSignal != nil), "lifecycle"},
		{c.SecurityContext != nil && *c.SecurityContext != corev1.SecurityContext{}, "securityContext"},
		{c.Stdin, "stdin"},
		{c.TTY, "tty"},
	} {
		if f.set {
			b.refuse(c.path+"."+f.name, "is not there yet for VM pods")
		}
	}
	for _, m := range c.VolumeMounts {
		if !b.isServiceAccountVolume(m.Name) {
			b.refuse(c.path+".volumeMounts["+m.MountPath+"]", "is not there yet for VM pods")
		}
	}
	if s := b.pod.Spec.SecurityContext; s != nil && (s.RunAsUser != nil || s.RunAsGroup != nil || s.FSGroup != nil ||
		len(s.SupplementalGroups) > 0 || len(s.Sysctls) > 0 || s.SeccompProfile != nil || s.AppArmorProfile != nil || s.SELinuxOptions != nil) {
		b.refuse("spec.securityContext", "is not there yet for VM pods")
	}
	if len(b.pod.Spec.HostAliases) > 0 {
		b.refuse("spec.hostAliases", "is not there yet for VM pods")
	}
	b.note(c.path, "the guest does not know the pod's host name")
}

// vmVolume passes over the volume that admission adds to every pod.
func (b *builder) vmVolume(v *volume) {
	if b.isServiceAccountVolume(v.Name) {
		b.note(v.field, "is left out: a VM has no volumes yet")
		return
	}
	b.refuse(v.field, "volumes are not there yet for VM pods")
}
