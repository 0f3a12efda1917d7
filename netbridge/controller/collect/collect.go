package collect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// room is its name in metrics.
const room = "collect"

// Collector is the room. Set the exported fields, then call Run once.
type Collector struct {
	Registry *registry.Registry
	// Nomad may be nil: then records of Nomad clients stay.
	Nomad *nomadapi.Client
	// Nodes are all of the cluster's; its informer must have synced.
	Nodes corelisters.NodeLister
	// After is how long an agent has been silent.
	After time.Duration
	// Interval is how often records are looked at: time alone makes one old.
	Interval time.Duration
	Guard    hold.Guard
	Metrics  *metrics.Metrics
	Log      hclog.Logger

	held, told string
}

// Run returns when ctx ends.
func (c *Collector) Run(ctx context.Context) {
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	for {
		err := c.pass(ctx)
		if err != nil && ctx.Err() == nil {
			c.Metrics.Errors.WithLabelValues(room).Inc()
			if c.told != err.Error() {
				c.Log.Warn("nothing is collected of what this is about", "error", err)
			}
		}
		c.told = fmt.Sprint(err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *Collector) pass(ctx context.Context) error {
	now := time.Now()
	records, err := c.Registry.Records(ctx)
	if err != nil {
		c.Guard.Doubt(now)
		return err
	}
	silent := map[string][]registry.Record{}
	for id, rec := range records {
		// One that was never seen is of an agent that does not say so.
		if !rec.Seen.IsZero() && now.Sub(rec.Seen) > c.After {
			silent[id.Kind()] = append(silent[id.Kind()], rec)
		}
	}
	var gone []string
	var errs []error
	for kind, ask := range map[string]func(context.Context, []registry.Record) ([]string, error){fabric.KindNomad: c.askNomad, fabric.KindK8s: c.askKubernetes} {
		if len(silent[kind]) == 0 {
			continue
		}
		ids, err := ask(ctx, silent[kind])
		if err != nil {
			c.Guard.Doubt(now)
			errs = append(errs, err)
		}
		gone = append(gone, ids...)
	}
	former, err := c.succeeded(records)
	if err != nil {
		c.Guard.Doubt(now)
		errs = append(errs, err)
	}
	gone = append(gone, former...)
	slices.Sort(gone)
	gone = slices.Compact(gone)
	free, held, again := c.Guard.Release(now, gone, len(records))
	if list := strings.Join(held, " "); list != c.held {
		c.held = list
		if list != "" {
			c.Log.Error("many nodes are gone at once, their records stay for now", "nodes", held, "until", again.Format(time.TimeOnly))
		}
	}
	c.Metrics.Held.WithLabelValues(room).Set(float64(len(held)))
	for _, id := range free {
		rec := records[fabric.ID(id)]
		if err := c.Registry.Release(ctx, rec); err != nil {
			errs = append(errs, err)
			continue
		}
		c.Metrics.Released.WithLabelValues(rec.ID.Kind()).Inc()
		c.Log.Info("a node is gone, others may have what it had", "node", id, "seen", rec.Seen)
	}
	return errors.Join(errs...)
}

func name(rec registry.Record) string {
	_, name, _ := strings.Cut(string(rec.ID), "/")
	return name
}

// askNomad returns which of the clients Nomad says are down or does not know, and
// run nothing.
func (c *Collector) askNomad(ctx context.Context, silent []registry.Record) ([]string, error) {
	if c.Nomad == nil {
		return nil, nil
	}
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	nodes, meta, err := c.Nomad.Nodes().List(q)
	switch {
	case err != nil:
		return nil, fmt.Errorf("list Nomad's nodes: %w", err)
	case !meta.KnownLeader:
		return nil, errors.New("nomad knows no leader")
	case len(nodes) == 0:
		return nil, errors.New("nomad has no nodes at all, as one that was set up anew")
	}
	var gone []string
	for _, rec := range silent {
		id := name(rec)
		i := slices.IndexFunc(nodes, func(n *nomadapi.NodeListStub) bool { return n.ID == id })
		if i >= 0 && nodes[i].Status != nomadapi.NodeStatusDown {
			continue // the client is there, only the agent is not
		}
		busy, err := c.runs(ctx, id)
		if err != nil {
			return nil, err
		}
		if !busy {
			gone = append(gone, string(rec.ID))
		}
	}
	return gone, nil
}

// runs says whether Nomad has an allocation for the node that may still run there.
// A token without rights in any namespace gets an error, one with some sees what is
// in those: its policy must name all (deploy/nomad/netbridge-controller.hcl).
func (c *Collector) runs(ctx context.Context, node string) (bool, error) {
	q := (&nomadapi.QueryOptions{Namespace: nomadapi.AllNamespacesNamespace, Filter: fmt.Sprintf("NodeID == %q", node)}).WithContext(ctx)
	allocs, meta, err := c.Nomad.Allocations().List(q)
	switch {
	case err != nil:
		return false, fmt.Errorf("list the allocations of Nomad's node %s: %w", node, err)
	case !meta.KnownLeader:
		return false, errors.New("nomad knows no leader")
	}
	return slices.ContainsFunc(allocs, func(a *nomadapi.AllocationListStub) bool {
		switch a.ClientStatus {
		case nomadapi.AllocClientStatusComplete, nomadapi.AllocClientStatusFailed, nomadapi.AllocClientStatusLost:
			return false
		}
		return true
	}), nil
}

// askKubernetes returns which UIDs no Node has.
func (c *Collector) askKubernetes(_ context.Context, silent []registry.Record) ([]string, error) {
	there, err := c.uids()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, rec := range silent {
		if !there[name(rec)] {
			gone = append(gone, string(rec.ID))
		}
	}
	return gone, nil
}

func (c *Collector) uids() (map[string]bool, error) {
	nodes, err := c.Nodes.List(labels.Everything())
	switch {
	case err != nil:
		return nil, err
	case len(nodes) == 0:
		return nil, errors.New("the API server has no nodes at all, as one that was set up anew")
	}
	there := map[string]bool{}
	for _, n := range nodes {
		there[string(n.UID)] = true
	}
	return there, nil
}

// succeeded returns which of the cluster's nodes are certainly gone, however short
// ago they were seen: no Node has their UID, and one that is there, and was seen
// since, announces a range of theirs. So it is when a Node is made anew, and when
// kube-controller-manager gives a removed Node's range to another. Until the former
// record goes, nobody follows the new one.
func (c *Collector) succeeded(records map[fabric.ID]registry.Record) ([]string, error) {
	former := map[fabric.ID][]registry.Record{}
	for id, rec := range records {
		for other, o := range records {
			if id != other && id.Kind() == fabric.KindK8s && other.Kind() == fabric.KindK8s && !rec.Seen.IsZero() && o.Seen.After(rec.Seen) && overlap(rec, o) {
				former[id] = append(former[id], o)
			}
		}
	}
	if len(former) == 0 {
		return nil, nil
	}
	there, err := c.uids()
	if err != nil {
		return nil, err
	}
	var gone []string
	for id, by := range former {
		if !there[name(records[id])] && slices.ContainsFunc(by, func(o registry.Record) bool { return there[name(o)] }) {
			gone = append(gone, string(id))
		}
	}
	return gone, nil
}

func overlap(a, b registry.Record) bool {
	return slices.ContainsFunc(a.CIDRs, func(p netip.Prefix) bool { return slices.ContainsFunc(b.CIDRs, p.Overlaps) })
}
