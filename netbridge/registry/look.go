package registry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// List reads what is announced, once. self must be in a complete list
// ([ErrNoRecord]).
func (r *Registry) List(ctx context.Context, self fabric.ID) (List, error) {
	q, cancel := query(ctx)
	defer cancel()
	pairs, meta, err := r.client.KV().List(r.prefix+"nodes/", q)
	if err != nil {
		return List{}, fmt.Errorf("list %snodes/: %w", r.prefix, err)
	}
	w := Watcher{Registry: r, Self: self}
	return w.whole(w.part(answer{pairs, meta})), nil
}

// Owners tells whose the blocks and overlay addresses are; released ones are left
// out.
func (r *Registry) Owners(ctx context.Context) (map[netip.Prefix]fabric.ID, map[netip.Addr]fabric.ID, error) {
	blocks, hosts, err := r.claims(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, h := map[netip.Prefix]fabric.ID{}, map[netip.Addr]fabric.ID{}
	for p, o := range blocks {
		if o.State != Released {
			b[p] = o.Node
		}
	}
	for a, o := range hosts {
		if o.State != Released {
			h[a] = o.Node
		}
	}
	return b, h, nil
}

// MayWrite says which of the keys that a node's agent writes the token may not
// write. It writes nothing: it asks for writes over a version that no key has, and
// Consul looks at the rights first (agent/consul/txn_endpoint.go, preCheck).
func (r *Registry) MayWrite(ctx context.Context, id fabric.ID) (denied []string, err error) {
	// The prefix will do for a node's right to take any block and address.
	keys := []string{"nodes/" + string(id), "blocks/-", "hosts/-", seenDir + string(id)}
	var ops api.KVTxnOps
	for _, k := range keys {
		ops = append(ops, &api.KVTxnOp{Verb: api.KVCAS, Key: r.prefix + k, Value: []byte("{}"), Index: math.MaxInt64})
	}
	q, cancel := query(ctx)
	defer cancel()
	ok, resp, _, err := r.client.KV().Txn(ops, q)
	switch {
	case err != nil:
		return nil, fmt.Errorf("try to write below %s: %w", r.prefix, err)
	case ok:
		return nil, errors.New("consul has written over a version that cannot be")
	}
	for _, e := range resp.Errors {
		if isDenied(e) && e.OpIndex < len(keys) {
			denied = append(denied, r.prefix+keys[e.OpIndex])
		}
	}
	return denied, nil
}
