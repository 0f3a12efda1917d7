package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	// VMPodDisk is the archive (tar) of what a pod gives its guest, as a disk of
	// vmPodDiskMB. It may hold secrets, so it lies in memory, which Nomad sizes to
	// vmSecretsMB: the disk and cloud-init's.
	VMPodDisk   = "/secrets/pod.tar"
	vmPodSerial = "pod"
	vmPodDiskMB = 6
	vmSecretsMB = 8
	// vmVolumeMB is the size of a volume on a disk that has no limit. It takes no
	// room before it is written to.
	vmVolumeMB = 8 << 10
	// serialLength is what a virtio disk's serial number may have
	// (VIRTIO_BLK_ID_BYTES).
	serialLength = 20
)

// VMExit is the file, in a VM's task directory, into which the guest's second
// serial port is written: the exit code of the container's command, and below it
// the container's termination message. qemu can end with odd codes alone.
const VMExit = "local/.k8s/exit"

// The sockets of that port, and of a monitor for the companion, which ends a VM
// whose command has failed.
const (
	vmExitPort = "exit.sock"
	vmEnd      = "end.sock"
)

// guest is what is collected for a VM's guest.
type guest struct {
	// command says that the container has one.
	command bool
	// script are calls of functions of nomadprovider/companion/guest/apply.sh.
	script []string
	files  []VolumeFile
	disks  []Disk
	args   []string
}

// vmVolume decides how a guest gets a volume: as files in the archive, or as a disk.
func (b *builder) vmVolume(v *volume) {
	v.items, v.source = &b.fileItems, v.Name
	if len(b.mountsOf(v.Name)) == 0 {
		return
	}
	switch s := &v.VolumeSource; {
	case s.EmptyDir != nil:
		b.vmEmptyDir(v)
	case s.ConfigMap != nil, s.Secret != nil, s.DownwardAPI != nil, s.Projected != nil:
		v.readOnly = true
		b.projectedFiles(v)
		b.guest.script = append(b.guest.script, call("files", v.Name))
		for _, f := range v.files {
			b.guest.files = append(b.guest.files, VolumeFile{Path: "volumes/" + v.Name + "/" + f.path, Item: f.item, Data: f.data, Mode: f.mode & 0o777})
		}
	case s.PersistentVolumeClaim != nil, s.Ephemeral != nil:
		b.vmClaim(v)
	case s.HostPath != nil:
		b.refuse(v.field, "a VM does not see its client's files")
	default:
		b.refuse(v.field, "%s", unsupportedVolume(s))
	}
}

// vmEmptyDir is a disk beside the VM's own, which stays when the VM restarts, or
// memory of the guest's.
func (b *builder) vmEmptyDir(v *volume) {
	e := v.EmptyDir
	var limit int64
	if e.SizeLimit != nil {
		limit = toMB(*e.SizeLimit)
	}
	switch e.Medium {
	case corev1.StorageMediumMemory:
		options := "mode=0777"
		if limit > 0 {
			options += fmt.Sprintf(",size=%dm", limit)
		}
		b.note(v.field+".emptyDir.medium", "the memory is the VM's, and is emptied when the guest reboots")
		b.guest.script = append(b.guest.script, call("memory", v.Name, options))
	case corev1.StorageMediumDefault:
		if limit == 0 {
			limit = vmVolumeMB
		}
		file, serial := "vol-"+v.Name+".qcow2", vmSerial(v.Name)
		b.guest.disks = append(b.guest.disks, Disk{Path: vmDirectory + "/" + file, SizeMB: limit})
		b.guest.args = append(b.guest.args,
			"-drive", "file="+file+",if=none,id="+"vol-"+v.Name+",format=qcow2,discard=unmap",
			"-device", "virtio-blk-pci,drive=vol-"+v.Name+",serial="+serial)
		b.guest.script = append(b.guest.script, call("disk", v.Name, serial))
	default:
		b.refuse(v.field+".emptyDir.medium", "huge pages are not there on Nomad")
	}
}

// vmSerial is the serial number of a volume's disk: its name, where that is not
// too long or taken.
func vmSerial(name string) string {
	if len(name) <= serialLength && !slices.Contains([]string{"root", "seed", vmPodSerial}, name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	const tail = 8
	return name[:min(len(name), serialLength-tail-1)] + "-" + hex.EncodeToString(sum[:])[:tail]
}

// vmMounts has the guest mount the container's volumes.
func (b *builder) vmMounts(c *container) {
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		field := c.path + ".volumeMounts[" + m.MountPath + "]"
		v := b.volumes[m.Name]
		if v == nil {
			b.refuse(field, "volume %q is not in the pod", m.Name)
			continue
		}
		target := path.Clean("/" + m.MountPath)
		if m.MountPath == "" || target == "/" || strings.Contains(target, "\n") {
			b.refuse(field, "mount path %q is not valid", m.MountPath)
			continue
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			b.refuse(field+".mountPropagation", "there is none between a VM and its client")
		}
		if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
			b.refuse(field+".recursiveReadOnly", "is not there on Nomad")
		}
		source, _, ok := b.mountSource(c, m, v, field)
		if !ok {
			continue
		}
		kind, mode := "disks/", "rw"
		if v.EmptyDir == nil && ClaimName(b.pod, v.Volume) == "" {
			kind = "volumes/"
		}
		if m.ReadOnly || v.readOnly {
			mode = "ro"
		}
		b.guest.script = append(b.guest.script, call("show", kind+source, target, mode))
	}
}

// vmPod is the disk with all that the pod gives its guest.
func (b *builder) vmPod(c *container) Disk {
	b.memoryVolumesMB += vmSecretsMB
	d := Disk{
		Path: VMPodDisk, SizeMB: vmPodDiskMB, Archive: true, Program: b.vmProgram(c),
		Files: []VolumeFile{{Path: "mounts", Data: strings.Join(b.guest.script, ""), Mode: 0o600}},
	}
	d.Files = append(d.Files, b.guest.files...)
	return d
}

// vmProgram is the environment, and the command if there is one. What the client
// alone knows is put in by the companion.
func (b *builder) vmProgram(c *container) *Program {
	p := &Program{Dir: c.WorkingDir, Message: c.TerminationMessagePath}
	if p.Message == "" {
		p.Message = corev1.TerminationMessagePathDefault
	}
	for _, name := range sortedKeys(c.env.services) {
		if _, own := c.env.values[name]; !own {
			p.Env = append(p.Env, Variable{Name: name, Value: Value{{Text: c.env.services[name]}}})
		}
	}
	for _, name := range sortedKeys(c.env.values) {
		p.Env = append(p.Env, Variable{Name: name, Value: b.vmValue(c.env.values[name])})
	}
	for _, word := range slices.Concat(c.Command, c.Args) {
		p.Words = append(p.Words, b.vmValue(expand(word, c.env.lookup)))
	}
	return p
}

func (b *builder) vmValue(t text) Value {
	b.useRuntime(t)
	v := make(Value, 0, len(t))
	for _, s := range t {
		run := s.run
		if run == runHostIP {
			// An attribute, which a task has as a variable alone.
			run, b.machine.hostIP = vmHostIP, true
		}
		v = append(v, Part{Text: s.lit, Item: s.item, Run: run})
	}
	return v
}

// vmHostIP is the variable with the client's address in a companion's environment.
const vmHostIP = "HOST_IP"

// vmCommand gives the guest the port on which it tells how its command ended.
func vmCommand() []string {
	return []string{
		"-chardev", "socket,id=exit,path=" + vmExitPort + ",server=on,wait=off,logfile=" + VMExit, "-serial", "chardev:exit",
		"-chardev", "socket,id=end,path=" + vmEnd + ",server=on,wait=off", "-mon", "chardev=end,mode=control",
	}
}

// call is a line of shell.
func call(function string, words ...string) string {
	for _, w := range words {
		function += " '" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return function + "\n"
}
