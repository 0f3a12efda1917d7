package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// States of a block; an overlay address that is not released has none.
const (
	// Active blocks are somebody's until a controller is certain that the node is
	// gone.
	Active = "active"
	// Released blocks may be taken again, the longest released first.
	Released = "released"
)

// owner is the value below blocks/ and hosts/.
type owner struct {
	Node  fabric.ID `json:"node"`
	State string    `json:"state,omitempty"`
	Since time.Time `json:"since,omitzero"`

	index uint64
}

// Request is what a node asks for.
type Request struct {
	ID       fabric.ID
	Settings fabric.Settings
	// Blocks is how many a Nomad client wants, at least. It has to do with fewer when
	// none is left, but not with none.
	Blocks int
	// Held are the blocks that this node has given addresses from. That they are
	// another's is an error, never mended by taking others.
	Held []netip.Prefix
	// PodCIDRs are a Kubernetes node's ranges.
	PodCIDRs []netip.Prefix
	// HeldHost is the overlay address that the node has.
	HeldHost netip.Addr
	Endpoint netip.Addr
	MTU      int
	// WG is the node's WireGuard public key; empty with another backend.
	WG string
}

// Claim gives the node its blocks and its overlay address and publishes its
// record, all in one transaction. It is idempotent: a node that has what it wants
// writes nothing. It tries again until ctx ends, but gives up at once when what
// the node holds is another's ([fabric.ErrOwned]), nothing is left, or the token may
// not write ([ErrDenied]).
func (r *Registry) Claim(ctx context.Context, q Request) (fabric.Node, error) {
	const minBackoff, maxBackoff = 10 * time.Millisecond, 2 * time.Second
	backoff := minBackoff
	for {
		node, done, err := r.claim(ctx, q)
		var final *finalError
		if done || errors.As(err, &final) {
			return node, err
		}
		if err == nil {
			backoff = minBackoff // only outrun by another
		}
		select {
		case <-ctx.Done():
			return node, cmp.Or(err, ctx.Err())
		case <-time.After(backoff/2 + rand.N(backoff)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// finalError is one that trying again does not mend.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func (r *Registry) claim(ctx context.Context, q Request) (fabric.Node, bool, error) {
	blocks, hosts, err := r.claims(ctx)
	if err != nil {
		return fabric.Node{}, false, err
	}
	published, index, err := r.node(ctx, q.ID)
	if err != nil {
		return fabric.Node{}, false, err
	}
	node := fabric.Node{Version: fabric.Version, CIDRs: slices.Clone(q.PodCIDRs), Endpoint: q.Endpoint, MTU: q.MTU, WG: q.WG}
	var ops api.KVTxnOps
	if q.ID.Kind() == fabric.KindNomad {
		if node.CIDRs, ops, err = r.pickBlocks(q, blocks); err != nil {
			return node, false, &finalError{err}
		}
	}
	host, op, err := r.pickHost(q, hosts)
	if err != nil {
		return node, false, &finalError{err}
	}
	node.Host = host
	if op != nil {
		ops = append(ops, op)
	}
	if err := q.Settings.Allowed(q.ID, node); err != nil {
		return node, false, &finalError{fmt.Errorf("this node's own record: %w", err)}
	}
	if len(ops) == 0 && published != nil && published.Equal(node) {
		return node, true, nil
	}
	value, err := json.Marshal(node)
	if err != nil {
		return node, false, &finalError{err}
	}
	ops = append(ops, &api.KVTxnOp{Verb: api.KVCAS, Key: r.prefix + "nodes/" + string(q.ID), Value: value, Index: index})
	ok, err := r.txn(ctx, ops)
	if err != nil {
		err = fmt.Errorf("claim: %w", err)
		if errors.Is(err, ErrDenied) {
			err = &finalError{err} // asking a hundred times a second gives no right
		}
		return node, false, err
	}
	return node, ok, nil
}

// claims reads who has what.
func (r *Registry) claims(ctx context.Context) (map[netip.Prefix]owner, map[netip.Addr]owner, error) {
	blocks, hosts := map[netip.Prefix]owner{}, map[netip.Addr]owner{}
	err := r.owners(ctx, "blocks/", func(key string, o owner) error {
		p, err := parseBlockKey(key)
		blocks[p] = o
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = r.owners(ctx, "hosts/", func(key string, o owner) error {
		a, err := netip.ParseAddr(strings.TrimPrefix(key, "hosts/"))
		hosts[a] = o
		return err
	})
	return blocks, hosts, err
}

// owners never takes a list that somebody's rights have cut for the whole: what
// is hidden would look free.
func (r *Registry) owners(ctx context.Context, dir string, each func(string, owner) error) error {
	q, cancel := query(ctx)
	defer cancel()
	pairs, meta, err := r.client.KV().List(r.prefix+dir, q)
	if err != nil {
		return fmt.Errorf("list %s%s: %w", r.prefix, dir, err)
	}
	if meta.ResultsFilteredByACLs {
		return fmt.Errorf("list %s%s: the token may not read all of it", r.prefix, dir)
	}
	for _, p := range pairs {
		o := owner{index: p.ModifyIndex}
		if err := json.Unmarshal(p.Value, &o); err != nil {
			return fmt.Errorf("%s: %w", p.Key, err)
		}
		if err := each(strings.TrimPrefix(p.Key, r.prefix), o); err != nil {
			return fmt.Errorf("%s: %w", p.Key, err)
		}
	}
	return nil
}

func (r *Registry) node(ctx context.Context, id fabric.ID) (*fabric.Node, uint64, error) {
	q, cancel := query(ctx)
	defer cancel()
	pair, _, err := r.client.KV().Get(r.prefix+"nodes/"+string(id), q)
	if err != nil {
		return nil, 0, fmt.Errorf("read %snodes/%s: %w", r.prefix, id, err)
	}
	if pair == nil {
		return nil, 0, nil
	}
	var n fabric.Node
	if json.Unmarshal(pair.Value, &n) != nil {
		return nil, pair.ModifyIndex, nil // written anew
	}
	return &n, pair.ModifyIndex, nil
}

// pickBlocks keeps what the node has, in the order of the addresses, and adds
// what it lacks: blocks held before first, then never used ones, then the
// longest released.
func (r *Registry) pickBlocks(q Request, blocks map[netip.Prefix]owner) ([]netip.Prefix, api.KVTxnOps, error) {
	var mine []netip.Prefix
	var ops api.KVTxnOps
	take := func(p netip.Prefix) {
		mine = append(mine, p)
		ops = append(ops, r.own(blockKey(p), owner{Node: q.ID, State: Active, Since: time.Now().UTC().Truncate(time.Second)}, blocks[p].index))
	}
	for p, o := range blocks {
		if o.Node == q.ID && o.State == Active {
			mine = append(mine, p)
		}
	}
	for _, p := range q.Held {
		if slices.Contains(mine, p) {
			continue
		}
		if o, ok := blocks[p]; ok && o.Node != q.ID && o.State != Released {
			return nil, nil, fmt.Errorf("block %s, which this node has pods on, %w: %s", p, fabric.ErrOwned, o.Node)
		}
		take(p)
	}
	for _, p := range candidates(q, blocks) {
		if len(mine) >= q.Blocks {
			break
		}
		if !slices.Contains(mine, p) {
			take(p)
		}
	}
	// A node that lacks one has pods on the others: its record must be there.
	if len(mine) == 0 {
		return nil, nil, fmt.Errorf("no block is left of %s: %d of %d are taken", q.Settings.BurstCIDR, len(blocks), q.Settings.Blocks())
	}
	slices.SortFunc(mine, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return mine, ops, nil
}

func candidates(q Request, blocks map[netip.Prefix]owner) []netip.Prefix {
	n := q.Settings.Blocks()
	var free, released []netip.Prefix
	for i := range n {
		p := q.Settings.Block((q.ID.Slot(n) + i) % n)
		switch o, used := blocks[p]; {
		case !used:
			free = append(free, p)
		case o.State == Released:
			released = append(released, p)
		}
	}
	slices.SortStableFunc(released, func(a, b netip.Prefix) int { return blocks[a].Since.Compare(blocks[b].Since) })
	return append(free, released...)
}

func (r *Registry) pickHost(q Request, hosts map[netip.Addr]owner) (netip.Addr, *api.KVTxnOp, error) {
	for a, o := range hosts {
		if o.Node == q.ID && o.State != Released && (!q.HeldHost.IsValid() || a == q.HeldHost) {
			return a, nil, nil
		}
	}
	mine := owner{Node: q.ID}
	o, taken := hosts[q.HeldHost]
	switch {
	case taken && o.Node != q.ID && o.State != Released:
		return netip.Addr{}, nil, fmt.Errorf("overlay address %s, which this node has, %w: %s", q.HeldHost, fabric.ErrOwned, o.Node)
	case q.HeldHost.IsValid():
		return q.HeldHost, r.own("hosts/"+q.HeldHost.String(), mine, o.index), nil
	}
	n := q.Settings.Hosts()
	var released []netip.Addr
	for i := range n {
		a := q.Settings.Host((q.ID.Slot(n) + i) % n)
		o, taken := hosts[a]
		if !taken {
			return a, r.own("hosts/"+a.String(), mine, 0), nil
		}
		if o.State == Released {
			released = append(released, a)
		}
	}
	if len(released) > 0 {
		a := slices.MinFunc(released, func(a, b netip.Addr) int { return hosts[a].Since.Compare(hosts[b].Since) })
		return a, r.own("hosts/"+a.String(), mine, hosts[a].index), nil
	}
	return netip.Addr{}, nil, fmt.Errorf("no overlay address is left of %s", q.Settings.HostCIDR)
}

// own is the write that succeeds only if nobody has written since index.
func (r *Registry) own(key string, o owner, index uint64) *api.KVTxnOp {
	value, _ := json.Marshal(o) // of strings and a time: cannot fail
	return &api.KVTxnOp{Verb: api.KVCAS, Key: r.prefix + key, Value: value, Index: index}
}
