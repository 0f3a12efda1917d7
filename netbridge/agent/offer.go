package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
)

const (
	// MetaKey is the client's metadata that jobs of the pod network ask for, as
	// MetaReady. Nomad looks for the network itself, too, but cannot take it back
	// once it was there, and does not tell jobs that wait when it appears: networks
	// are no part of what it tells clients apart by (nomad/structs/node_class.go),
	// metadata are.
	MetaKey   = "netbridge"
	MetaReady = "ready"
	// nodeWait is how long Nomad holds a query for the node that has nothing new.
	nodeWait = 5 * time.Minute
)

// offers is whether pods are welcome on this client; not known before the first
// claim has ended.
type offers struct {
	welcome atomic.Pointer[bool]
	changed chan struct{}
}

func (o *offers) set(welcome bool) {
	if was := o.welcome.Swap(&welcome); was != nil && *was == welcome {
		return
	}
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// offer keeps the client's metadata at what holds, until ctx ends: ready when the
// client knows the network and gives addresses. Without Nomad nothing is placed,
// so nothing is lost by waiting for it.
func (a *Agent) offer(ctx context.Context) {
	var index uint64
	failed, asked := false, false
	for ctx.Err() == nil {
		node, at, err := a.watchNode(ctx, index)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failed {
				a.Log.Warn("Nomad does not tell of this client, its metadata stay", "error", err)
			}
			failed, index = true, 0
			pause(ctx, retry)
			continue
		case node == nil: // what is welcome has changed
			index = 0
			continue
		}
		failed, index = false, at
		welcome := a.offers.welcome.Load()
		if welcome == nil {
			continue
		}
		knows := joins(node)
		if *welcome && !knows && !asked {
			asked = true
			a.Log.Warn("the Nomad client does not know the network yet: send its agent one SIGHUP, or start it again")
		}
		ready := *welcome && knows
		told, err := mark(ctx, a.Nomad, a.node(), node.Meta[MetaKey], ready)
		if told {
			a.Log.Info("told Nomad's scheduler about this client", "meta."+MetaKey, map[bool]string{true: MetaReady, false: "unset"}[ready])
		}
		if err != nil {
			a.Log.Warn("cannot write the client's metadata (node write is needed)", "error", err)
			index = 0
			pause(ctx, verify)
		}
	}
}

// watchNode returns when the node is not as at index any more, or without it when
// what is welcome has changed.
func (a *Agent) watchNode(ctx context.Context, index uint64) (*nomadapi.Node, uint64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	turned := make(chan bool, 1)
	go func() {
		select {
		case <-a.offers.changed:
			turned <- true
			cancel()
		case <-ctx.Done():
			turned <- false
		}
	}()
	q := (&nomadapi.QueryOptions{WaitIndex: index, WaitTime: nodeWait}).WithContext(ctx)
	node, meta, err := a.Nomad.Nodes().Info(a.node(), q)
	cancel()
	if <-turned {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return node, meta.LastIndex, nil
}

func joins(n *nomadapi.Node) bool {
	return n.NodeResources != nil && slices.ContainsFunc(n.NodeResources.Networks, func(r *nomadapi.NetworkResource) bool {
		return r.Mode == "cni/"+cniconf.Network
	})
}

// mark tells Nomad's scheduler whether a client is ready, where that is not what it
// knows now. It says whether it did.
func mark(ctx context.Context, nomad *nomadapi.Client, node, now string, ready bool) (bool, error) {
	var want *string
	if ready {
		want = new(MetaReady)
	}
	if ready == (now == MetaReady) && (ready || now == "") {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	_, err := nomad.Nodes().Meta().Apply(&nomadapi.NodeMetaApplyRequest{NodeID: node, Meta: map[string]*string{MetaKey: want}},
		(&nomadapi.QueryOptions{}).WithContext(ctx))
	return err == nil, err
}
