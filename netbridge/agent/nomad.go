package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// collectInterval is how often addresses are compared with allocations.
const collectInterval = time.Minute

// nomadID asks the Nomad agent whose node this is.
func (a *Agent) nomadID(_ context.Context) (string, error) {
	if a.Nomad == nil {
		return "", errors.New("node.id: give the Nomad client's node ID, since nomad.disabled keeps it from being asked for")
	}
	self, err := a.Nomad.Agent().Self()
	if err != nil {
		return "", fmt.Errorf("node.id is not given, and the Nomad agent at %s does not tell it: %w", a.Nomad.Address(), err)
	}
	id := self.Stats["client"]["node_id"]
	if id == "" {
		return "", fmt.Errorf("the Nomad agent at %s is no client", a.Nomad.Address())
	}
	return id, nil
}

// collect frees addresses whose allocations are gone, until ctx ends. What Nomad
// does not answer frees nothing.
func (a *Agent) collect(ctx context.Context) {
	c := ipam.Collector{Store: a.store}
	_, node, _ := strings.Cut(string(a.id), "/")
	for ; ctx.Err() == nil; pause(ctx, collectInterval) {
		allocs, _, err := a.Nomad.Nodes().Allocations(node, (&nomadapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			a.Log.Warn("Nomad does not tell this client's allocations, no address is collected", "error", err)
			continue
		}
		live := map[string]bool{}
		for _, alloc := range allocs {
			if !alloc.ClientTerminalStatus() {
				live[alloc.ID] = true
			}
		}
		freed, err := c.Collect(live)
		if err != nil {
			a.Log.Error("cannot collect addresses", "error", err)
		}
		if len(freed) > 0 {
			a.Log.Info("freed addresses whose pods are gone", "addresses", freed)
			a.metrics.collected.Add(float64(len(freed)))
		}
	}
}
