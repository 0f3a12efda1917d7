package translate

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// What qemu takes beside the guest's memory: it is reserved, and the buffer for
// translated code, which grows with what the guest runs up to 1 GiB
// (accel/tcg/translate-all.c, DEFAULT_CODE_GEN_BUFFER_SIZE), is allowed. The
// task's memory is a hard limit on all of it.
const (
	vmOverheadMB  = 128
	vmTranslateMB = 1024
)

// What a guest has at least and at most, in MiB. Below the first no Linux is loaded: its
// kernel lies at 16 MiB (arch/x86/Kconfig, PHYSICAL_START); qemu would start, and its
// screen stay dark. The second is the driver's own limit, less what is reserved beside
// the guest (drivers/qemu/driver.go, StartTask).
const (
	vmLeastMB = 17
	vmMostMB  = 4000000 - vmOverheadMB
)

// vmGuestMemory is the guest's memory in MiB.
func (b *builder) vmGuestMemory(c *container) int {
	guest := b.memory(c.Container).reserve
	field := c.path + ".resources.requests.memory"
	switch q, asked := c.Resources.Requests[corev1.ResourceMemory]; {
	case guest < vmLeastMB && asked:
		b.refuse(field, "%s is too little for a machine to boot: give it %dMi or more", q.String(), vmLeastMB)
	case guest < vmLeastMB:
		b.refuse(field, "%dMi, the node's defaultMemoryMB, is too little for a machine to boot: give it %dMi or more", guest, vmLeastMB)
	case guest > vmMostMB:
		b.refuse(field, "%dMi is more than Nomad's qemu driver takes: give it at most %dMi", guest, vmMostMB)
	}
	return guest
}

// vmMemory sets what a VM's task reserves, and may use where Nomad honours that.
func (b *builder) vmMemory(r *api.Resources, guest int) {
	r.MemoryMB = new(guest + vmOverheadMB)
	if b.row.Config["accelerator"] == AcceleratorKVM {
		return
	}
	if b.in.Node.MemoryOversubscription {
		r.MemoryMaxMB = new(guest + vmOverheadMB + vmTranslateMB)
		return
	}
	b.noteCommon("spec.runtimeClassName", "without KVM qemu's memory grows with what the guest runs, and may pass what is reserved: "+
		"switch Nomad's memory oversubscription on")
}

// vmDirectory is where a VM's companion sees the VM's task directory.
const vmDirectory = "/vm"

// The sockets of a VM in its task's directory. Nomad's qemu driver names the
// monitor's and the agent's (drivers/qemu/driver.go).
const (
	vmConsole = "con.sock"
	vmPlug    = "plug.sock"
)

// The sockets of a VM as its companion sees them.
const (
	VMMonitor = vmDirectory + "/qm.sock"
	VMAgent   = vmDirectory + "/qa.sock"
	VMConsole = vmDirectory + "/" + vmConsole
	// VMPlug is a second monitor: one serves one client at a time, and the
	// companion holds the first while it waits for a VM to shut down.
	VMPlug = vmDirectory + "/" + vmPlug
)

// machine is what a VM's task and its companion's share.
type machine struct {
	disks []Disk
	// hostIP says that the companion is to know the client's address.
	hostIP bool
	// tap says that the guest has the pod's address.
	tap bool
	// mounts and artifacts are the companion's.
	mounts    []map[string]any
	artifacts []*api.TaskArtifact
	// fetch are the tasks that bring the image before.
	fetch []*api.Task
}

// vm writes the configuration of Nomad's qemu driver (drivers/qemu/driver.go).
func (b *builder) vm(c *container) {
	if c.init || len(b.pod.Spec.Containers) != 1 {
		b.refuse(c.path, "a VM pod has one container and no init containers")
	}
	if b.in.Node.CompanionImage == "" {
		b.refuse("spec.runtimeClassName", "a VM pod needs the companion: set virtualNodes[].companionImage")
	}
	b.vmRefusals(c)
	b.machine.tap = b.vmTap()
	args := []string{
		// qemu takes the last -m; the driver's own is the task's memory.
		"-m", strconv.Itoa(b.vmGuestMemory(c)),
		"-smp", b.vmCPUs(c),
		// A guest that crashes ends as a container does, with a code that is no success.
		"-device", "pvpanic", "-action", "panic=exit-failure",
		// With this a VM that has to be killed says so in its exit code.
		"-device", "isa-debug-exit",
		// By this the guest tells of its memory.
		"-device", "virtio-balloon-pci,id=balloon",
	}
	b.variables(c)
	b.vmMounts(c)
	args = append(args, b.vmConsole()...)
	if b.guest.command = len(c.Command)+len(c.Args) > 0; b.guest.command {
		args = append(args, vmCommand()...)
	}
	args = append(args, b.vmDisks(c)...)
	args = append(args, b.vmFirmware()...)
	args = append(args, b.vmHugePages()...)
	args = append(args, b.vmPCIDevices()...)
	args = append(args, b.vmKernel(c)...)
	args = append(args, b.vmNetwork(c)...)
	b.vmAccelerator(c)
	// A power button for the guest, and the monitor off the serial console.
	c.config["graceful_shutdown"] = true
	c.config["guest_agent"] = true
	c.config["args"] = escapeAll(args)
}

// vmAccelerator is the client's own, as found out there; a row of the driver table
// that names one wins. Nomad cannot tell a task of metadata that is not there, so
// such clients are left out, and without any that has KVM it is not asked for.
func (b *builder) vmAccelerator(c *container) {
	c.config["accelerator"] = AcceleratorTCG
	if _, given := b.row.Config["accelerator"]; given || !b.in.Node.KVM {
		return
	}
	c.config["accelerator"] = "${meta." + AcceleratorMeta + "}"
	b.job.Constraints = append(b.job.Constraints, &api.Constraint{
		LTarget: "${meta." + AcceleratorMeta + "}", Operand: "regexp", RTarget: "^(" + AcceleratorKVM + "|" + AcceleratorTCG + ")$",
	})
}

// vmCPUs are as many as requested, rounded up: cores of one socket, or as asked for.
func (b *builder) vmCPUs(c *container) string {
	cpus := max(1, min(int64(math.Ceil(float64(milliCPU(c.Container))/1000)), 255))
	asked, given := b.pod.Annotations[AnnotationVMCPUTopology]
	if !given {
		return fmt.Sprintf("%[1]d,sockets=1,cores=%[1]d,threads=1", cpus)
	}
	field := "metadata.annotations[" + AnnotationVMCPUTopology + "]"
	product := int64(1)
	parts := strings.Split(asked, ",")
	for i, p := range parts {
		n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 8)
		if err != nil || n == 0 || len(parts) != 3 {
			b.refuse(field, "%q is not sockets,cores,threads", asked)
			return ""
		}
		product *= int64(n)
		parts[i] = strconv.FormatUint(n, 10)
	}
	if product != cpus {
		b.refuse(field, "%q comes to %d CPUs, and the container's request to %d", asked, product, cpus)
	}
	return fmt.Sprintf("%d,sockets=%s,cores=%s,threads=%s", cpus, parts[0], parts[1], parts[2])
}

// vmConsole gives the guest a serial console that is the task's log from its
// first byte on, and takes one client on a socket. The path is relative to the
// task's directory, where qemu runs: a socket's has 108 bytes.
func (b *builder) vmConsole() []string {
	return []string{
		"-chardev", "socket,id=console,path=" + vmConsole + ",server=on,wait=off,logfile=/dev/stdout,logappend=on",
		"-serial", "chardev:console",
		"-chardev", "socket,id=plug,path=" + vmPlug + ",server=on,wait=off", "-mon", "chardev=plug,mode=readline",
	}
}

// vmCompanion fits the companion's task to a VM: it has what the disks are made
// of, sees the VM's sockets, and is a main task, so that it is told to stop at the
// same time as the VM, not after it: it presses the power button.
func (b *builder) vmCompanion(t *api.Task) {
	if len(b.group.Tasks) == 0 {
		return // a pod without containers
	}
	vm := b.group.Tasks[0]
	t.Lifecycle = nil
	t.KillTimeout = vm.KillTimeout
	t.Artifacts = b.machine.artifacts
	command := "vm"
	if b.machine.tap {
		command = "vm-tap"
		b.tapCompanion(t)
	}
	t.Config["args"] = []string{command, VMMonitor, VMPodDisk, VMAgent}
	if b.guest.command {
		t.Config["args"] = append(t.Config["args"].([]string), vmDirectory+"/"+vmExitPort, vmDirectory+"/"+VMExit, vmDirectory+"/"+vmEnd)
	}
	if b.machine.hostIP {
		t.Env = map[string]string{vmHostIP: "${" + runHostIP + "}"}
	}
	t.Config["volumes"] = []string{"../" + vm.Name + ":" + vmDirectory}
	if cache := b.imageCache(); cache != "" && len(b.machine.fetch) > 0 {
		t.Config["volumes"] = append(t.Config["volumes"].([]string), cache+":"+cache+":ro")
		t.Config["args"] = append([]string{"hold", vmImageBase}, t.Config["args"].([]string)...)
	}
	if len(b.machine.mounts) > 0 {
		t.Config["mount"] = b.machine.mounts
	}
}

// vmRefusals lists what has a meaning only for a container's process.
func (b *builder) vmRefusals(c *container) {
	for _, f := range []struct {
		set  bool
		name string
	}{
		{len(c.VolumeDevices) > 0, "volumeDevices"},
		// It would be run before the guest has booted.
		{c.Lifecycle != nil && c.Lifecycle.PostStart != nil, "lifecycle.postStart"},
		{c.Lifecycle != nil && c.Lifecycle.StopSignal != nil, "lifecycle.stopSignal"},
		{c.SecurityContext != nil && *c.SecurityContext != corev1.SecurityContext{}, "securityContext"},
	} {
		if f.set {
			b.refuse(c.path+"."+f.name, "is not there yet for VM pods")
		}
	}
	if s := b.pod.Spec.SecurityContext; s != nil && (s.RunAsUser != nil || s.RunAsGroup != nil || s.FSGroup != nil ||
		len(s.SupplementalGroups) > 0 || len(s.Sysctls) > 0 || s.SeccompProfile != nil || s.AppArmorProfile != nil || s.SELinuxOptions != nil) {
		b.refuse("spec.securityContext", "is not there yet for VM pods")
	}
	if len(b.pod.Spec.HostAliases) > 0 {
		b.refuse("spec.hostAliases", "is not there yet for VM pods")
	}
	if c.WorkingDir != "" && len(c.Command)+len(c.Args) == 0 {
		b.refuse(c.path+".workingDir", "is the command's: give one in command or args")
	}
	if when, given := b.pod.Annotations[AnnotationVMReady]; given {
		field := "metadata.annotations[" + AnnotationVMReady + "]"
		if vmReady[when] == nil {
			b.refuse(field, "%q is neither agent nor cloud-init", when)
		}
		if c.StartupProbe != nil {
			b.refuse(field, "is given beside a startup probe")
		}
	}
	for _, name := range sortedKeys(b.pod.Annotations) {
		if strings.HasPrefix(name, annotationVM) && !vmAnnotations[name] {
			b.refuse("metadata.annotations["+name+"]", "is not known (docs/vms.md lists those that are): a VM has no live migration, no snapshots and no devices that come and go, "+
				"and its machine type is the row's, config.machine_type")
		}
	}
}
