package translate

import (
	"time"

	"github.com/hashicorp/nomad/api"
)

// PowerTask presses a VM's power button when the pod is stopped. Its name can
// be no container's.
const PowerTask = "vm.power"

// companionMemoryMB is what Nomad takes at least, and some.
const companionMemoryMB = 32

// companions adds the tasks that run beside the pod's containers.
func (b *builder) companions() {
	if b.row.Driver != driverQemu || len(b.group.Tasks) != 1 {
		return
	}
	vm := b.group.Tasks[0]
	if b.in.Node.CompanionImage == "" {
		b.note("spec.terminationGracePeriodSeconds", "qemu before 9.0 does not hear the guest's power button pressed by Nomad: set virtualNodes[].companionImage")
		return
	}
	// A main task, so that it is told to stop at the same time as the VM, not
	// after it. It never fails, or it would take the VM with it.
	b.group.Tasks = append(b.group.Tasks, &api.Task{
		Name:        PowerTask,
		Driver:      driverDocker,
		KillTimeout: vm.KillTimeout,
		LogConfig:   vm.LogConfig,
		Resources:   &api.Resources{CPU: new(1), MemoryMB: new(companionMemoryMB)},
		RestartPolicy: &api.RestartPolicy{
			Attempts: new(100000), Delay: new(15 * time.Second), Interval: new(2000000 * time.Second), Mode: new(api.RestartPolicyModeDelay),
		},
		Config: map[string]any{
			"image":           b.in.Node.CompanionImage,
			"args":            []string{"vm-power", "/vm/qm.sock"},
			"volumes":         []string{"../" + vm.Name + ":/vm"},
			"cap_drop":        []string{"all"},
			"readonly_rootfs": true,
		},
	})
}
