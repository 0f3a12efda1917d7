package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	// verify is how often a claim that stands is looked at: somebody may have
	// written over it.
	verify = time.Minute
	// retry is how soon after a failure, and the least time between two claims.
	retry = 2 * time.Second
	// vacancy is how long a record that somebody removed stays away: all others see
	// that it was gone, after which they take it with another key, too.
	vacancy = time.Second
	// claimTimeout bounds one attempt.
	claimTimeout = 15 * time.Second
	// seenInterval is how often the record says that this node lives.
	seenInterval = 5 * time.Minute
)

// vanished is the reason for a claim that publishes the node's record again.
const vanished = "own record is missing"

// claimed is what an attempt came to.
type claimed struct {
	settings fabric.Settings
	own      fabric.Node
	err      error
	// short says that there were fewer blocks than are wanted.
	short error
}

// claim keeps the node's claims and its record in Consul, until ctx ends. own is
// what it had the last time.
func (a *Agent) claim(ctx context.Context, own fabric.Node) {
	for ctx.Err() == nil {
		c := a.claimOnce(ctx, own)
		wait := verify
		if c.err != nil {
			wait = retry
		} else {
			own = c.own
		}
		select {
		case a.claims <- c:
		case <-ctx.Done():
			return
		}
		early := time.Now().Add(retry)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case what := <-a.reclaim:
			if what == vanished {
				pause(ctx, vacancy)
			}
			pause(ctx, time.Until(early))
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (a *Agent) claimOnce(ctx context.Context, own fabric.Node) (c claimed) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if c.settings, c.err = a.registry.Settings(ctx); c.err != nil {
		return c
	}
	q := registry.Request{ID: a.id, Settings: c.settings, Endpoint: a.endpoint, HeldHost: own.Host}
	if a.store == nil {
		if q.PodCIDRs, c.err = a.ranges(own); c.err != nil {
			return c
		}
	}
	if c.err = a.describe(&q); c.err != nil {
		return c
	}
	if a.store != nil {
		if c.err = a.wants(own, &q); c.err != nil {
			return c
		}
	}
	if c.own, c.err = a.registry.Claim(ctx, q); c.err == nil {
		a.saySeen(ctx)
		if a.store != nil && len(c.own.CIDRs) < q.Blocks {
			c.short = fmt.Errorf("has %d of the %d blocks that it wants: none is left of %s", len(c.own.CIDRs), q.Blocks, c.settings.BurstCIDR)
		}
	}
	return c
}

// saySeen writes that this node lives, from time to time, and anew when Consul has
// lost it. A failure changes nothing here: who takes it for gone waits for a day.
func (a *Agent) saySeen(ctx context.Context) {
	if err := a.registry.Seen(ctx, a.id, seenInterval); err != nil {
		a.Log.Warn("cannot tell that this node lives (has the token's policy seen/?)", "error", err)
	}
}

// wants asks for one block more when addresses are scarce.
func (a *Agent) wants(own fabric.Node, q *registry.Request) error {
	entries, err := a.store.Entries()
	if err != nil {
		return err
	}
	// By the addresses alone: what else this node knows of itself may be lost.
	held := map[netip.Prefix]bool{}
	for _, e := range entries {
		if b, err := e.Address.Prefix(q.Settings.BlockBits); err == nil && q.Settings.BurstCIDR.Contains(e.Address) {
			held[b] = true
		}
	}
	q.Held = slices.SortedFunc(maps.Keys(held), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	q.Blocks = max(a.Config.Node.Blocks, len(own.CIDRs), len(held))
	if scarce(len(entries), own.CIDRs) {
		q.Blocks = max(q.Blocks, len(own.CIDRs)+1)
	}
	return nil
}

// Endpoint is the configured address, or the one by which this machine reaches
// others.
func Endpoint(configured string) (netip.Addr, error) {
	if configured != "" {
		return netip.ParseAddr(configured)
	}
	// Any address outside will do (RFC 5737): nothing is sent.
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 1))
	if err != nil || len(routes) == 0 || routes[0].Src == nil {
		return netip.Addr{}, errors.New("this machine has no default route: set node.endpoint to its address in the underlay")
	}
	addr, ok := netip.AddrFromSlice(routes[0].Src.To4())
	if !ok {
		return netip.Addr{}, fmt.Errorf("the default route has no IPv4 source: set node.endpoint")
	}
	return addr, nil
}
