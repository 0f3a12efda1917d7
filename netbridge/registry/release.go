package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// txnOps is how many writes Consul takes in one transaction
// at least (agent/txn_endpoint.go, maxTxnOps: 64, later 128).
const txnOps = 64

// ErrOutrun says that somebody has written meanwhile.
var ErrOutrun = errors.New("somebody else has written meanwhile")

// Record is a node's, as of one list.
type Record struct {
	ID fabric.ID
	// Seen is when its agent last said that it lives; zero if it never did.
	Seen time.Time
	// CIDRs are the ranges that it announces.
	CIDRs []netip.Prefix

	// index is 0 where there is no record.
	index, seenIndex uint64
}

// Intact says why what Consul holds must not be taken for all there is: it knows no
// leader, or the sentinel is missing, as in a Consul that was emptied.
func (r *Registry) Intact(ctx context.Context) error {
	q, cancel := query(ctx)
	defer cancel()
	pair, meta, err := r.client.KV().Get(r.prefix+sentinel, q)
	switch {
	case err != nil:
		return fmt.Errorf("read %s%s: %w", r.prefix, sentinel, err)
	case !meta.KnownLeader:
		return errors.New("consul knows no leader")
	case pair == nil:
		return fmt.Errorf("%s%s is missing", r.prefix, sentinel)
	}
	return nil
}

// Records reads all records, those that cannot be read left out. A node that was
// seen and has none, because somebody has removed it, is among them: what it had is
// still claimed. It fails where they may not be all there are.
func (r *Registry) Records(ctx context.Context) (map[fabric.ID]Record, error) {
	// What is seen first: who is written between the two lists was never seen.
	seen, err := r.whole(ctx, seenDir)
	if err != nil {
		return nil, err
	}
	nodes, err := r.whole(ctx, "nodes/")
	if err != nil {
		return nil, err
	}
	if _, kept := nodes[strings.TrimPrefix(sentinel, "nodes/")]; !kept {
		return nil, fmt.Errorf("%s%s is missing", r.prefix, sentinel)
	}
	records := map[fabric.ID]Record{}
	for name, p := range nodes {
		id := fabric.ID(name)
		var n fabric.Node
		if id.Validate() != nil || json.Unmarshal(p.Value, &n) != nil {
			continue
		}
		rec := Record{ID: id, CIDRs: n.CIDRs, index: p.ModifyIndex}
		if s, ok := seen[name]; ok {
			if at, err := parseSeen(s); err == nil {
				rec.Seen, rec.seenIndex = at, s.ModifyIndex
			}
		}
		records[id] = rec
	}
	for name, p := range seen {
		id := fabric.ID(name)
		at, err := parseSeen(p)
		if _, there := nodes[name]; !there && err == nil && id.Validate() == nil {
			records[id] = Record{ID: id, Seen: at, seenIndex: p.ModifyIndex}
		}
	}
	return records, nil
}

// whole lists a directory, by name, if Consul vouches for all of it.
func (r *Registry) whole(ctx context.Context, dir string) (map[string]*api.KVPair, error) {
	q, cancel := query(ctx)
	defer cancel()
	pairs, meta, err := r.client.KV().List(r.prefix+dir, q)
	switch {
	case err != nil:
		return nil, fmt.Errorf("list %s%s: %w", r.prefix, dir, err)
	case !meta.KnownLeader:
		return nil, errors.New("consul knows no leader")
	case meta.ResultsFilteredByACLs:
		return nil, fmt.Errorf("the token may not read all of %s%s", r.prefix, dir)
	}
	all := map[string]*api.KVPair{}
	for _, p := range pairs {
		all[strings.TrimPrefix(p.Key, r.prefix+dir)] = p
	}
	return all, nil
}

// Release takes away the record of a node that is gone and lets others have what
// it had, the longest released first. Nothing happens ([ErrOutrun]) when the node
// has said since that it lives, or has claimed.
func (r *Registry) Release(ctx context.Context, rec Record) error {
	if rec.seenIndex == 0 {
		return fmt.Errorf("%s was never seen", rec.ID)
	}
	blocks, hosts, err := r.claims(ctx)
	if err != nil {
		return err
	}
	var ops api.KVTxnOps
	free := owner{Node: rec.ID, State: Released, Since: time.Now().UTC().Truncate(time.Second)}
	for p, o := range blocks {
		if o.Node == rec.ID && o.State == Active {
			ops = append(ops, r.own(blockKey(p), free, o.index))
		}
	}
	for a, o := range hosts {
		if o.Node == rec.ID && o.State != Released {
			ops = append(ops, r.own("hosts/"+a.String(), free, o.index))
		}
	}
	key := string(rec.ID)
	still := api.KVTxnOps{
		{Verb: api.KVCheckIndex, Key: r.prefix + seenDir + key, Index: rec.seenIndex},
		{Verb: api.KVCheckIndex, Key: r.prefix + "nodes/" + key, Index: rec.index},
	}
	last := api.KVTxnOps{
		{Verb: api.KVDeleteCAS, Key: r.prefix + "nodes/" + key, Index: rec.index},
		{Verb: api.KVDeleteCAS, Key: r.prefix + seenDir + key, Index: rec.seenIndex},
	}
	if rec.index == 0 {
		still[1] = &api.KVTxnOp{Verb: api.KVCheckNotExists, Key: still[1].Key}
		last = last[1:]
	}
	for part := range slices.Chunk(ops, txnOps-len(still)) {
		if err := r.outrun(ctx, slices.Concat(still, part)); err != nil {
			return fmt.Errorf("release what %s had: %w", rec.ID, err)
		}
	}
	// The record last: while it is there the next try finds the rest.
	err = r.outrun(ctx, slices.Concat(still, last))
	if err != nil {
		return fmt.Errorf("remove the record of %s: %w", rec.ID, err)
	}
	return nil
}

func (r *Registry) outrun(ctx context.Context, ops api.KVTxnOps) error {
	ok, err := r.txn(ctx, ops)
	if err == nil && !ok {
		return ErrOutrun
	}
	return err
}
