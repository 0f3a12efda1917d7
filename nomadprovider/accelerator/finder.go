package accelerator

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// again is how long a client that could not be tried is left alone.
const again = 10 * time.Minute

// Finder tries clients, one at a time.
type Finder struct {
	Nomad   *api.Client
	Clients *node.Clients
	// For are the virtual nodes whose clients are tried.
	For []For
	Log hclog.Logger
}

// For is a virtual node: Nomad's namespace for its jobs, and which clients are its.
type For struct {
	Namespace string
	Counts    func(node.ClientInfo) bool
}

// Run tries each client of which nothing is known, until ctx ends, or Nomad
// refuses what it takes.
func (f *Finder) Run(ctx context.Context) {
	changed, stop := f.Clients.Subscribe()
	defer stop()
	tried := map[string]time.Time{}
	retry := time.NewTicker(again)
	defer retry.Stop()
	for {
		for _, c := range f.Clients.List() {
			if ctx.Err() != nil {
				return
			}
			namespace, ok := f.namespace(c)
			if !ok || time.Since(tried[c.ID]) < again {
				continue
			}
			tried[c.ID] = time.Now()
			if !f.try(ctx, c, namespace) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry.C:
		}
	}
}

// namespace is where a client is to be tried; ok is false for those of which enough
// is known, that have no qemu, or not the BIOS that the guest is made for.
func (f *Finder) namespace(c node.ClientInfo) (name string, ok bool) {
	if !c.QEMU || c.Accelerator != "" || c.Arch != "amd64" {
		return "", false
	}
	for _, n := range f.For {
		if n.Counts(c) {
			return n.Namespace, true
		}
	}
	return "", false
}

// try tells whether there is a point in further tries.
func (f *Finder) try(ctx context.Context, c node.ClientInfo, namespace string) bool {
	works, err := Try(ctx, f.Nomad, namespace, c.ID, c.Pool, translate.AcceleratorKVM)
	if err == nil {
		err = apply(ctx, f.Nomad, c.ID, works)
	}
	switch {
	case ctx.Err() != nil:
	case connect.Denied(err):
		f.Log.Info("which clients run VMs by KVM cannot be found out, and tcg is used: Nomad's token may not submit jobs or write clients' "+
			"metadata (node write); metadata "+translate.AcceleratorMeta+" in the clients' configuration says it, too", "error", err)
		return false
	case err != nil:
		f.Log.Warn("whether a client runs VMs by KVM is not known", "client", c.Name, "error", err)
	default:
		f.Log.Info("tried to run a VM by KVM", "client", c.Name, "works", works)
	}
	return true
}
