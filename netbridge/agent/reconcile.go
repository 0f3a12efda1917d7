package agent

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/bridge"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/guard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// bind makes the backend of the settings and listens for what happens to it.
func (a *Agent) bind(ctx context.Context) {
	b, err := a.newBackend()
	if err != nil {
		a.problem("backend", err)
		return
	}
	if a.unwatch != nil {
		a.unwatch()
	}
	watch, cancel := context.WithCancel(ctx)
	a.problem("backend", b.Watch(watch, func(what string) { wake(a.net, what) }))
	a.backend, a.unwatch = b, cancel
}

// reconcile brings the machine to what the view says. With look it takes nothing of
// the rules for granted.
func (a *Agent) reconcile(ctx context.Context, look bool) {
	if a.backend == nil {
		a.tell(overlay.Goal{}, nil)
		return
	}
	a.view.Settings, a.view.Self, a.view.Own = a.state.Settings, a.id, a.state.Own
	var l registry.List
	if a.list != nil {
		l = *a.list
	} else {
		l.Incomplete = errors.New("consul has not answered yet")
	}
	r := a.view.Apply(time.Now(), l)
	a.again = r.Again
	a.report(r)
	goal := a.goal(r)
	if a.store != nil {
		a.ensureBridge()
	}
	began := time.Now()
	c, err := a.backend.Ensure(goal)
	a.problem("overlay", err)
	a.metrics.overlay(c, goal)
	if c.Any() {
		a.Log.Info("overlay", "peers", len(goal.Peers), "set", c.Set, "gone", c.Gone, "device", c.Device, "took", time.Since(began))
	}
	// After the routes, since it may take longer.
	began = time.Now()
	rules, err := a.guard.Ensure(ctx, a.ruleset(goal), look)
	a.problem("rules", err)
	a.metrics.rules(rules)
	if rules != (guard.Changes{}) {
		a.Log.Debug("rules", "written", rules.Written, "peers", rules.Peers, "took", time.Since(began))
	}
	if c.Again {
		wake(a.net, "there are new peers")
	}
	if rules.Foreign {
		a.Log.Warn("somebody had changed the rules", "rebound", rules.Rebound)
	}
	if a.store != nil {
		a.count()
	}
	a.save(r)
	a.tell(goal, &r)
}

func (a *Agent) bridgeMAC() net.HardwareAddr { return ("bridge " + a.id).MAC() }

func (a *Agent) ensureBridge() {
	changed, err := bridge.Ensure(bridge.Config{
		Name: a.Config.CNI.Bridge, MTU: a.state.Own.MTU, MAC: a.bridgeMAC(), Blocks: a.state.Own.CIDRs, Also: a.Config.DNS.Address,
	})
	a.problem("bridge", err)
	if changed {
		a.Log.Info("set up the bridge of the pods", "bridge", a.Config.CNI.Bridge, "blocks", a.state.Own.CIDRs)
	}
}

func (a *Agent) goal(r peers.Result) overlay.Goal {
	g := overlay.Goal{Prune: r.Prune, Backstop: []netip.Prefix{a.state.Settings.BurstCIDR, a.state.Settings.HostCIDR}}
	if a.store != nil {
		g.Backstop = append(g.Backstop, a.state.Settings.ClusterCIDRs...)
	}
	for _, id := range slices.Sorted(maps.Keys(r.Peers)) {
		n := r.Peers[id]
		cidrs := n.CIDRs
		if a.id.Kind() == fabric.KindK8s && id.Kind() == fabric.KindK8s {
			cidrs = nil // between the cluster's own nodes its CNI has the routes
		}
		g.Peers = append(g.Peers, overlay.Peer{Name: string(id), Host: n.Host, Endpoint: n.Endpoint, CIDRs: cidrs, MAC: id.MAC(), Key: n.WG, MTU: n.MTU})
	}
	return g
}

func (a *Agent) ruleset(g overlay.Goal) guard.Rules {
	s := a.state.Settings
	r := guard.Rules{Device: a.Config.Device, Cluster: s.ClusterCIDRs, Burst: s.BurstCIDR, Host: s.HostCIDR, Port: s.Port}
	if a.store != nil {
		r.Bridge, r.Local = a.Config.CNI.Bridge, a.state.Own.CIDRs
	}
	for _, p := range g.Peers {
		r.Endpoints = append(r.Endpoints, p.Endpoint)
	}
	return r
}

// save keeps the peers file current; one that could not be written is tried
// again at the next audit.
func (a *Agent) save(r peers.Result) {
	s := peers.State{Fabric: a.Config.Fabric, Settings: a.state.Settings, ID: a.id, Own: a.state.Own, Peers: r.Peers}
	if last := a.seen.Load(); last != nil && last.saved && s.Equal(last.state) {
		return
	}
	err := s.Save(filepath.Join(a.Config.StateDir, peersFile))
	a.problem("state", err)
	a.state.Peers = r.Peers
}

// report logs what is refused or held, once.
func (a *Agent) report(r peers.Result) {
	refused := map[fabric.ID]string{}
	for id, err := range r.Refused {
		refused[id] = err.Error()
		if a.refused[id] != refused[id] {
			a.Log.Error("a node's record is not followed", "node", id, "reason", err)
		}
	}
	a.refused = refused
	last := a.seen.Load()
	if r.Prune && len(r.Held) > 0 && (last == nil || last.result == nil || !slices.Equal(last.result.Held, r.Held)) {
		a.Log.Error("nodes are missing that may come back, they are kept for now", "nodes", len(r.Held), "until", r.Again.Format(time.TimeOnly))
	}
}

// problem keeps what is wrong now, a thing a key, and logs it when it changes.
func (a *Agent) problem(what string, err error) {
	if err == nil {
		if _, was := a.problems[what]; was {
			a.Log.Info("is well again", "what", what)
			delete(a.problems, what)
		}
		return
	}
	if a.problems[what] != err.Error() {
		a.Log.Error("cannot do all", "what", what, "error", err)
	}
	a.problems[what] = err.Error()
	a.metrics.errors.WithLabelValues(what).Inc()
}

// health is what is known of Consul, told from two goroutines.
type health struct {
	err  atomic.Pointer[string]
	last atomic.Int64
}

func (a *Agent) healthy(err error) {
	if err == nil {
		a.consul.last.Store(time.Now().Unix())
		if was := a.consul.err.Swap(nil); was != nil {
			a.Log.Info("Consul answers again")
		}
		a.metrics.consulUp.Set(1)
		return
	}
	text := err.Error()
	if a.consul.err.Swap(&text) == nil {
		a.Log.Warn("Consul is away, everything stays as it is", "error", err)
	}
	a.metrics.consulUp.Set(0)
}
