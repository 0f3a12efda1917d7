package translate

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// The tasks that bring a VM's image to its client before the VM and its companion
// start. Their names can be no container's.
const (
	// VMFetchTask fetches an image from a URL into the client's cache. For a
	// container image that carries a disk it leaves our program in the allocation.
	VMFetchTask = "pod.fetch"
	// VMDiskTask is a container of that image, in which our program copies the disk
	// out: there need be no other program in it. It waits behind its gate for ours; the
	// gate's path takes no dots.
	VMDiskTask = "pod_disk"
)

// The directory that the allocation's tasks share, and what these leave in it, as
// all tasks but a VM's see them (nomadprovider/companion/vmimage).
const (
	vmImageDir     = "/alloc/image"
	vmImageBase    = vmImageDir + "/base"
	vmImageProgram = vmImageDir + "/companion"
)

// vmFetchMemoryMB is what those tasks take. Nomad does not add it to the VM's, which
// comes after them.
const vmFetchMemoryMB = 128

// vmFetchRetry is the pause after a failed start, such as of a pull. The tasks
// themselves lengthen the one after a failed fetch as the kubelet does.
const vmFetchRetry = 10 * time.Second

// checksums are those that a client's cache verifies, with their hexadecimal digits.
var checksums = regexp.MustCompile(`^(md5:[0-9a-fA-F]{32}|sha1:[0-9a-fA-F]{40}|sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128})$`)

// vmImage says where the image comes from.
func (b *builder) vmImage(c *container, d *Disk) {
	field := c.path + ".image"
	d.Image = c.Image
	disk := b.pod.Annotations[AnnotationVMImagePath]
	url := strings.HasPrefix(c.Image, "https://") || strings.HasPrefix(c.Image, "http://")
	switch {
	case c.Image == vmNoImage:
		d.Image = ""
		if d.SizeMB == 0 {
			d.SizeMB = vmEmptyDiskMB
		}
	case url && (strings.Contains(c.Image, "${") || strings.ContainsAny(c.Image, " \t\n")):
		b.refuse(field, "%q is not a URL", c.Image)
	case url && b.in.Node.HostAccess.ImageCache != "":
		b.vmCachedURL(c, d)
	case url:
		b.vmArtifact(c, d)
	case path.IsAbs(c.Image):
		b.vmClientImage(c, d)
	default:
		b.vmContainerDisk(c, d, disk)
		return
	}
	if disk != "" {
		b.refuse("metadata.annotations["+AnnotationVMImagePath+"]", "is a file of a container image, and %s is none", c.Image)
	}
}

// vmClientImage is a file of the client.
func (b *builder) vmClientImage(c *container, d *Disk) {
	if !b.vmPath(c.path+".image", c.Image, "not the path of a disk image on the Nomad client") {
		return
	}
	clean := path.Clean(c.Image)
	// A mount, unlike a volume, does not make what is not there.
	b.machine.mounts = append(b.machine.mounts, bindMount(clean, vmBase, true, ""))
	d.Base, d.Backing = vmBase, clean
}

// vmArtifact has Nomad fetch the image for this pod alone.
func (b *builder) vmArtifact(c *container, d *Disk) {
	a := &api.TaskArtifact{
		GetterSource:  new(c.Image),
		GetterMode:    new("file"),
		GetterOptions: map[string]string{"archive": "false"},
		RelativeDest:  new(vmFetched),
	}
	if sum := b.vmChecksum(c); sum != "" {
		a.GetterOptions["checksum"] = sum
	}
	b.machine.artifacts = []*api.TaskArtifact{a}
	d.Base, d.Backing = "/"+vmFetched, "../"+CompanionTask+"/"+vmFetched
}

func (b *builder) vmChecksum(c *container) string {
	sum := b.pod.Annotations[AnnotationImageChecksum]
	if sum == "" {
		b.note(c.path+".image", "is not verified: give its checksum in annotation %s", AnnotationImageChecksum)
	}
	return sum
}

// vmCachedURL has the image fetched into the client's cache, unless it is there. As
// an image that is pulled, it is fetched by the client: with its network, its name
// servers, and its CAs beside the companion's.
func (b *builder) vmCachedURL(c *container, d *Disk) {
	args := []string{"image-fetch", vmImageDir, b.imageCache(), string(c.ImagePullPolicy), c.Image}
	if sum := b.vmChecksum(c); sum != "" {
		if !checksums.MatchString(sum) {
			b.refuse("metadata.annotations["+AnnotationImageChecksum+"]", "%q is no checksum: give sha256: (or md5:, sha1:, sha512:) and its hexadecimal digits", sum)
		}
		args = append(args, sum)
	}
	t := b.vmFetch(VMFetchTask, c, args)
	const cas = "/client/certs"
	t.Env = map[string]string{"SSL_CERT_DIR": cas}
	t.Config["network_mode"] = "host"
	t.Config["volumes"] = append(t.Config["volumes"].([]string), "/etc/ssl/certs:"+cas+":ro", "/etc/resolv.conf:/client/resolv.conf:ro")
	b.vmFetchedBy(d, t)
}

// vmContainerDisk takes the disk out of a container image.
func (b *builder) vmContainerDisk(c *container, d *Disk, disk string) {
	if _, err := name.ParseReference(c.Image, name.WeakValidation); err != nil || strings.Contains(c.Image, "://") || strings.HasPrefix(c.Image, ".") {
		b.refuse(c.path+".image", "%q is neither the path of a disk image on the Nomad client, nor an http(s) URL, nor the name of a container image that carries a disk "+
			"(without docker:// before it)", c.Image)
	}
	if disk != "" && (!path.IsAbs(disk) || slices.Contains(strings.Split(disk, "/"), "..")) {
		b.refuse("metadata.annotations["+AnnotationVMImagePath+"]", "%q is not the absolute path of a file in the container image", disk)
	}
	if b.pod.Annotations[AnnotationImageChecksum] != "" {
		b.refuse("metadata.annotations["+AnnotationImageChecksum+"]", "is of an image from a URL: name a container image by its digest")
	}
	program := b.vmFetch(VMFetchTask, c, []string{"image-program", vmImageDir})
	program.Resources.MemoryMB, program.Config["network_mode"] = new(companionMemoryMB), "none"
	delete(program.Config, "volumes")
	t := b.vmFetch(VMDiskTask, c, []string{"image-copy", vmImageDir, b.imageCache(), disk})
	t.Config["entrypoint"] = []string{vmImageProgram}
	t.Config["image"], t.Config["network_mode"] = escapeHCL(c.Image), "none"
	// The disk may belong to another user, such as KubeVirt's.
	t.Config["cap_add"] = []string{"dac_override"}
	b.pull(&container{Container: c.Container, path: c.path, task: t, config: t.Config})
	t.Templates = []*api.Template{gateTemplate(b.heldGate(VMDiskTask))}
	b.closed = append(b.closed, VMDiskTask)
	b.vmFetchedBy(d, program, t)
}

// vmFetch is a task before the VM's and the companion's, whose room it has until
// they start.
func (b *builder) vmFetch(task string, c *container, args []string) *api.Task {
	t := helper(task, map[string]any{
		"image":           b.in.Node.CompanionImage,
		"args":            escapeAll(args),
		"cap_drop":        []string{"all"},
		"readonly_rootfs": true,
	})
	t.User = "0:0"
	t.Lifecycle = &api.TaskLifecycle{Hook: api.TaskLifecycleHookPrestart}
	t.Resources = &api.Resources{CPU: c.task.Resources.CPU, MemoryMB: new(vmFetchMemoryMB)}
	t.RestartPolicy.Delay = new(vmFetchRetry)
	if cache := b.imageCache(); cache != "" {
		t.Config["volumes"] = []string{cache + ":" + cache}
	}
	return t
}

// vmFetchedBy says that those tasks leave the disk's image where it is looked for:
// itself, or a link into the cache, which has the same path everywhere.
func (b *builder) vmFetchedBy(d *Disk, tasks ...*api.Task) {
	b.machine.fetch = tasks
	d.Base, d.Backing = vmImageBase, ".."+vmImageBase
}

func (b *builder) imageCache() string {
	if dir := b.in.Node.HostAccess.ImageCache; dir != "" {
		return path.Clean(dir)
	}
	return ""
}

const textFetching = "the disk image is being fetched"

// fetching says what a VM's container waits for as long as its image is not there,
// nil once it is.
func (v *view) fetching(c *corev1.Container) *corev1.ContainerStateWaiting {
	for _, task := range []string{VMFetchTask, VMDiskTask} {
		ts := v.alloc.TaskStates[task]
		if ts == nil || ts.State == taskDead && !ts.Failed {
			continue
		}
		e := lastEvent(ts, append([]string{api.TaskTerminated}, startFailures...)...)
		switch {
		case e == nil || e.Type == api.TaskTerminated && ExitCode(e) == 0:
			return &corev1.ContainerStateWaiting{Reason: reasonCreating, Message: textFetching}
		case e.Type == api.TaskTerminated:
			why := eventMessage(e)
			if m := v.facts.Messages[task]; m.End == e.Time && m.Text != "" {
				why = m.Text
			}
			return pullFailure(c, why, ts.Restarts)
		}
		w := startFailure(c, e, max(ts.Restarts, v.facts.Tries))
		if task == VMFetchTask {
			w.Message = "the pod's companion (virtualNodes[].companionImage) does not start: " + w.Message
		}
		return w
	}
	return nil
}
