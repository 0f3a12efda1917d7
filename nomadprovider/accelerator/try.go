package accelerator

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// taskName is the one task of a try's job.
	taskName = "guest"
	// placing is how long a try may take to be placed and started, and running how
	// long its guest, which is through within a second, may run before it counts as
	// hanging.
	placing = 2 * time.Minute
	running = 20 * time.Second
	// purging bounds the removal of a try's job.
	purging = 10 * time.Second
)

// errUntried says that the guest was not started: the client has no room, or is gone.
var errUntried = errors.New("the guest was not started")

// bootSector is a disk of one sector that switches the machine off: the BIOS runs
// it in real mode, and it writes SLP_EN of the state S5 to the register PM1a_CNT,
// which SeaBIOS puts at 0x604 of qemu's machine "pc".
func bootSector() []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0xba, 0x04, 0x06, // mov dx, 0x604
		0xb8, 0x00, 0x20, // mov ax, 0x2000
		0xef,       // out dx, ax
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
	copy(b[510:], []byte{0x55, 0xaa})
	return b
}

// job is one try on one client. Whatever it needs is part of it.
func job(id, namespace, client, pool, accelerator string) *api.Job {
	never := &api.RestartPolicy{Attempts: new(0), Mode: new("fail")}
	task := &api.Task{
		Name:   taskName,
		Driver: "qemu",
		Config: map[string]any{"image_path": "local/boot.img", "accelerator": accelerator},
		Templates: []*api.Template{{
			EmbeddedTmpl: new(`{{ base64Decode "` + base64.StdEncoding.EncodeToString(bootSector()) + `" }}`),
			DestPath:     new("local/boot.img"),
			ChangeMode:   new("noop"),
		}},
		// The least that the driver takes (drivers/qemu/driver.go).
		Resources:     &api.Resources{CPU: new(100), MemoryMB: new(128)},
		LogConfig:     &api.LogConfig{Disabled: new(true), MaxFiles: new(1), MaxFileSizeMB: new(1)},
		RestartPolicy: never,
	}
	return &api.Job{
		ID: &id, Name: &id, Namespace: &namespace, NodePool: &pool, Type: new("batch"), Datacenters: []string{"*"},
		Constraints: []*api.Constraint{{LTarget: "${node.unique.id}", Operand: "=", RTarget: client}},
		TaskGroups: []*api.TaskGroup{{
			Name: new("try"), RestartPolicy: never, ReschedulePolicy: &api.ReschedulePolicy{Attempts: new(0), Unlimited: new(false)},
			EphemeralDisk: &api.EphemeralDisk{SizeMB: new(10)},
			Tasks:         []*api.Task{task},
		}},
	}
}

// Try runs a guest with one of qemu's accelerators on a client, and tells whether
// it ran. The error says why that is not known.
func Try(ctx context.Context, nomad *api.Client, namespace, client, pool, accelerator string) (works bool, err error) {
	id := "nomad-kubelet-" + accelerator + "-" + client
	write := (&api.WriteOptions{Namespace: namespace}).WithContext(ctx)
	if _, _, err := nomad.Jobs().Register(job(id, namespace, client, pool, accelerator), write); err != nil {
		return false, fmt.Errorf("register job %s: %w", id, err)
	}
	defer func() {
		// Also when ctx has ended, which is no reason to leave it behind.
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), purging)
		defer stop()
		_, _, gone := nomad.Jobs().Deregister(id, true, (&api.WriteOptions{Namespace: namespace}).WithContext(ctx))
		if gone != nil {
			err = errors.Join(err, fmt.Errorf("remove job %s: %w", id, gone))
		}
	}()
	return follow(ctx, nomad, namespace, id)
}

// follow waits for a try's end.
func follow(ctx context.Context, nomad *api.Client, namespace, id string) (bool, error) {
	deadline, started := time.Now().Add(placing), false
	q := &api.QueryOptions{Namespace: namespace}
	for {
		left := time.Until(deadline)
		switch {
		case left <= 0 && started:
			return false, nil // it hangs
		case left <= 0:
			return false, errUntried
		}
		q.WaitTime = left
		allocs, meta, err := nomad.Jobs().Allocations(id, false, q.WithContext(ctx))
		if err != nil {
			return false, fmt.Errorf("follow job %s: %w", id, err)
		}
		q.WaitIndex = meta.LastIndex
		for _, a := range allocs {
			s := a.TaskStates[taskName]
			switch {
			case a.ClientStatus == api.AllocClientStatusComplete && s != nil && !s.Failed && !s.FinishedAt.IsZero():
				return true, nil
			case a.ClientStatus == api.AllocClientStatusFailed:
				return false, nil
			case a.ClientStatus == api.AllocClientStatusLost, a.ClientStatus == api.AllocClientStatusComplete:
				return false, errUntried
			case s != nil && s.State == "running" && !started:
				started, deadline = true, time.Now().Add(running)
			}
		}
	}
}

// apply writes what came of a try into the client's metadata.
func apply(ctx context.Context, nomad *api.Client, client string, works bool) error {
	found := translate.AcceleratorTCG
	if works {
		found = translate.AcceleratorKVM
	}
	q := (&api.QueryOptions{}).WithContext(ctx)
	_, err := nomad.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{
		NodeID: client, Meta: map[string]*string{translate.AcceleratorMeta: &found},
	}, q)
	return err
}
