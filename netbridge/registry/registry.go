package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

const (
	root     = "netbridge/v1/"
	sentinel = "nodes/.keep"
	seenDir  = "seen/"
	// callTimeout bounds what is no blocking query: with packets dropped on the
	// way, the kernel would hold a call for minutes.
	callTimeout = 5 * time.Second
)

// Registry is one fabric's part of Consul. One a process: Consul allows 200
// connections from one address.
type Registry struct {
	client *api.Client
	prefix string
	name   string
}

// New does not connect yet.
func New(client *api.Client, name string) *Registry {
	return &Registry{client: client, prefix: root + name + "/", name: name}
}

// ErrNoSettings says that nobody has set the fabric up.
var ErrNoSettings = errors.New("has no settings in Consul: write them with netbridge fabric set")

// Settings reads the fabric's settings.
func (r *Registry) Settings(ctx context.Context) (fabric.Settings, error) {
	s, _, err := r.settings(ctx)
	return s, err
}

func (r *Registry) settings(ctx context.Context) (fabric.Settings, uint64, error) {
	var s fabric.Settings
	q, cancel := query(ctx)
	defer cancel()
	pair, _, err := r.client.KV().Get(r.prefix+"config", q)
	switch {
	case err != nil:
		return s, 0, fmt.Errorf("read the settings of fabric %q: %w", r.name, err)
	case pair == nil:
		return s, 0, fmt.Errorf("fabric %q %w", r.name, ErrNoSettings)
	}
	if err := json.Unmarshal(pair.Value, &s); err != nil {
		return s, 0, fmt.Errorf("settings of fabric %q: %w", r.name, err)
	}
	if err := s.Validate(); err != nil {
		return s, 0, fmt.Errorf("settings of fabric %q: %w", r.name, err)
	}
	return s, pair.ModifyIndex, nil
}

// SetSettings writes them, over what was there when it began. What blocks were
// cut from must stay, and so must the backend, since nodes with different ones do
// not reach each other: a change of burstCIDR, hostCIDR, blockBits or backend is
// refused while there are claims, one of clusterCIDRs while a node announces a range
// that would be in none: within a minute its pods would be reached by nobody.
func (r *Registry) SetSettings(ctx context.Context, s fabric.Settings) error {
	if err := s.Validate(); err != nil {
		return err
	}
	old, index, err := r.settings(ctx)
	if err != nil && !errors.Is(err, ErrNoSettings) {
		return err
	}
	if err == nil && (old.BurstCIDR != s.BurstCIDR || old.HostCIDR != s.HostCIDR || old.BlockBits != s.BlockBits || old.Backend != s.Backend) {
		blocks, hosts, err := r.claims(ctx)
		if err != nil {
			return err
		}
		if n := len(blocks) + len(hosts); n > 0 {
			return fmt.Errorf("burstCIDR, hostCIDR, blockBits and backend cannot change while there are claims (%d)", n)
		}
	}
	if err == nil {
		if err := r.shutOut(ctx, old, s.ClusterCIDRs); err != nil {
			return err
		}
	}
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ok, err := r.txn(ctx, api.KVTxnOps{
		{Verb: api.KVCAS, Key: r.prefix + "config", Value: value, Index: index},
		{Verb: api.KVSet, Key: r.prefix + sentinel, Value: []byte("{}")},
	})
	if err == nil && !ok {
		err = errors.New("somebody else has changed them meanwhile")
	}
	if err != nil {
		return fmt.Errorf("write the settings of fabric %q: %w", r.name, err)
	}
	return nil
}

// shutOut names a node that is followed with the old settings, and would not be with
// other clusterCIDRs.
func (r *Registry) shutOut(ctx context.Context, old fabric.Settings, clusterCIDRs []netip.Prefix) error {
	nodes, err := r.whole(ctx, "nodes/")
	if err != nil {
		return err
	}
	others := old
	others.ClusterCIDRs = clusterCIDRs
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		var n fabric.Node
		if json.Unmarshal(nodes[name].Value, &n) != nil || old.Allowed(fabric.ID(name), n) != nil {
			continue
		}
		if err := others.Allowed(fabric.ID(name), n); err != nil {
			return fmt.Errorf("clusterCIDRs: node %s would not be followed any more: %w; if it is gone: consul kv delete %snodes/%s", name, err, r.prefix, name)
		}
	}
	return nil
}

// Ping says whether Consul answers with a leader's word.
func (r *Registry) Ping(ctx context.Context) error {
	q, cancel := query(ctx)
	defer cancel()
	_, meta, err := r.client.KV().Get(r.prefix+sentinel, q)
	if err == nil && !meta.KnownLeader {
		err = errors.New("consul knows no leader")
	}
	return err
}

// ErrDenied says that the token may not write.
var ErrDenied = errors.New("permission denied")

// txn says whether all of it was done; with an error that is not known, unless it
// is [ErrDenied]: then none of it was. Consul answers a write that the token has no
// right to as one that somebody else has outrun (agent/consul/txn_endpoint.go).
func (r *Registry) txn(ctx context.Context, ops api.KVTxnOps) (bool, error) {
	q, cancel := query(ctx)
	defer cancel()
	ok, resp, _, err := r.client.KV().Txn(ops, q)
	if err != nil || ok {
		return ok, err
	}
	for _, e := range resp.Errors {
		if isDenied(e) && e.OpIndex < len(ops) {
			return false, fmt.Errorf("the token may not write %s: %w", ops[e.OpIndex].Key, ErrDenied)
		}
	}
	return false, nil
}

func isDenied(e *api.TxnError) bool {
	return strings.Contains(strings.ToLower(e.What), "permission denied")
}

func query(ctx context.Context) (*api.QueryOptions, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	return (&api.QueryOptions{}).WithContext(ctx), cancel
}

func blockKey(p netip.Prefix) string {
	return "blocks/" + strings.ReplaceAll(p.String(), "/", "-")
}

func parseBlockKey(key string) (netip.Prefix, error) {
	return netip.ParsePrefix(strings.ReplaceAll(strings.TrimPrefix(key, "blocks/"), "-", "/"))
}
