package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// collectInterval is how often addresses are compared with allocations.
const collectInterval = time.Minute

// askTimeout bounds a question that the agent's start waits for.
const askTimeout = 3 * time.Second

// errRenamed says that the agent was somebody else the last time.
var errRenamed = errors.New("the Nomad client has another node ID than the last time: start the agent again")

// nomadID asks the Nomad agent whose node this is. After a boot it may not be there
// yet, and waits for the network that this program sets up: then the client is
// taken for the one that it was the last time.
func (a *Agent) nomadID(ctx context.Context, last fabric.ID) (string, error) {
	if a.Nomad == nil {
		return "", errors.New("node.id: give the Nomad client's node ID, since nomad.disabled keeps it from being asked for")
	}
	id, err := a.askID(ctx)
	if err == nil {
		return id, nil
	}
	if last.Kind() == fabric.KindNomad {
		a.Log.Info("Nomad does not tell the client's ID yet, takes it for the one of the last time", "node", last, "error", err)
		a.assumed = true
		_, name, _ := strings.Cut(string(last), "/")
		return name, nil
	}
	return a.waitForID(ctx)
}

// waitForID returns an error only when ctx ends.
func (a *Agent) waitForID(ctx context.Context) (string, error) {
	told := ""
	for {
		id, err := a.askID(ctx)
		if err == nil {
			return id, nil
		}
		if told != err.Error() {
			told = err.Error()
			a.Log.Warn("node.id is not given, waits for Nomad to tell it", "error", err)
		}
		pause(ctx, retry)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
}

// askID does not wait for one that takes the call and does not answer.
func (a *Agent) askID(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var self nomadapi.AgentSelf
	_, err := a.Nomad.Raw().Query("/v1/agent/self", &self, (&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("ask the Nomad agent at %s: %w", a.Nomad.Address(), err)
	}
	id := self.Stats["client"]["node_id"]
	if id == "" {
		return "", fmt.Errorf("the Nomad agent at %s is no client", a.Nomad.Address())
	}
	return id, nil
}

// verify waits until Nomad has told the ID that was assumed.
func (a *Agent) verify(ctx context.Context) error {
	if !a.assumed {
		return nil
	}
	id, err := a.waitForID(ctx)
	if err != nil {
		return err
	}
	if now := fabric.ID(fabric.KindNomad + "/" + id); now != a.id {
		return fmt.Errorf("%w: it was %s and is %s", errRenamed, a.id, now)
	}
	return nil
}

// collect frees addresses whose allocations are gone, until ctx ends. What Nomad
// does not answer frees nothing.
func (a *Agent) collect(ctx context.Context) {
	c := ipam.Collector{Store: a.store}
	node := a.node()
	for ; ctx.Err() == nil; pause(ctx, collectInterval) {
		call, cancel := context.WithTimeout(ctx, claimTimeout)
		allocs, _, err := a.Nomad.Nodes().Allocations(node, (&nomadapi.QueryOptions{}).WithContext(call))
		cancel()
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

// node is the Nomad client's ID.
func (a *Agent) node() string {
	_, node, _ := strings.Cut(string(a.id), "/")
	return node
}
