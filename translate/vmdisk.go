package translate

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// vmRootDisk is the VM's own disk, in its task's directory: Nomad allows no
	// other image without the client's image_paths.
	vmRootDisk = "root.qcow2"
	// vmBase is where the companion sees the image that the disk begins as, and
	// vmFetched where an image from a URL lies in its task's directory.
	vmBase    = "/base"
	vmFetched = "local/base.img"
	// vmNoImage names no image: the disk is empty.
	vmNoImage = "scratch"
	// vmEmptyDiskMB is the size of an empty disk that has none given. It takes no
	// room before it is written to.
	vmEmptyDiskMB = 1024
)

// vmDisks names the VM's disks. The root disk holds what the VM writes; all else
// is read from the image, which many share. It lies in the allocation's directory
// and goes with it.
func (b *builder) vmDisks(c *container) []string {
	root := Disk{Path: vmDirectory + "/" + vmRootDisk, SizeMB: b.vmRootSize(c)}
	b.vmImage(c, &root)
	seed := b.vmSeed()
	b.machine.disks = append([]Disk{root, seed, b.vmPod(c)}, b.guest.disks...)
	c.config["image_path"] = vmRootDisk
	c.config["drive_interface"] = "none"
	args := []string{
		"-device", "virtio-blk-pci,drive=image0,serial=root,bootindex=1",
		"-drive", "file=../" + CompanionTask + seed.Path + ",if=none,id=seed,format=raw,readonly=on",
		"-device", "virtio-blk-pci,drive=seed,serial=seed",
		"-drive", "file=../" + CompanionTask + VMPodDisk + ",if=none,id=pod,format=raw,readonly=on",
		"-device", "virtio-blk-pci,drive=pod,serial=" + vmPodSerial,
	}
	return append(args, b.guest.args...)
}

// vmRootSize is what the container may, or else wants to, store: 0 for the
// image's own size.
func (b *builder) vmRootSize(c *container) int64 {
	for _, list := range []corev1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
		if q, ok := list[corev1.ResourceEphemeralStorage]; ok && !q.IsZero() {
			return toMB(q)
		}
	}
	return 0
}

// vmPath says whether a file of the Nomad client may be given to a VM.
func (b *builder) vmPath(field, file, not string) bool {
	switch {
	case !path.IsAbs(file), slices.Contains(strings.Split(file, "/"), ".."), strings.ContainsAny(file, ",\n"):
		b.refuse(field, "%q is %s", file, not)
	case !under(path.Clean(file), b.in.Node.HostAccess.ImagePaths):
		b.refuse(field, "path %s of the Nomad client is not allowed: add its directory to virtualNodes[].hostAccess.imagePaths", path.Clean(file))
	default:
		return true
	}
	return false
}

// vmFirmware has the VM boot by UEFI. What the guest stores in its variables is
// not kept: it is booted from \EFI\BOOT, or from a kernel.
func (b *builder) vmFirmware() []string {
	file, given := b.pod.Annotations[AnnotationVMFirmware]
	if !given || !b.vmPath("metadata.annotations["+AnnotationVMFirmware+"]", file, "not an absolute path of a file on the Nomad client") {
		return nil
	}
	return []string{"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + path.Clean(file)}
}

// vmKernel boots a kernel that the client holds in the place of what the disk
// would boot.
func (b *builder) vmKernel(c *container) (args []string) {
	kernel := b.pod.Annotations[AnnotationVMKernel]
	for _, f := range []struct{ annotation, option string }{{AnnotationVMKernel, "-kernel"}, {AnnotationVMInitrd, "-initrd"}} {
		file, field := b.pod.Annotations[f.annotation], "metadata.annotations["+f.annotation+"]"
		switch {
		case file == "":
		case kernel == "":
			b.refuse(field, "needs %s", AnnotationVMKernel)
		case b.vmPath(field, file, "not an absolute path of a file on the Nomad client"):
			args = append(args, f.option, path.Clean(file))
		}
	}
	switch line, given := b.pod.Annotations[AnnotationVMCmdline]; {
	case given && kernel == "":
		b.refuse("metadata.annotations["+AnnotationVMCmdline+"]", "needs %s", AnnotationVMKernel)
	case given:
		args = append(args, "-append", line)
	}
	if kernel == "" && c.Image == vmNoImage {
		b.refuse(c.path+".image", "an empty disk does not boot: give a kernel in annotation %s", AnnotationVMKernel)
	}
	return args
}
