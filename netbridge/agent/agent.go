package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/guard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/resolver"
)

const (
	// audit is how often all is looked at without an event: what no event tells,
	// such as a change by the legacy iptables, is mended after that.
	audit = 10 * time.Second
	// rulesInterval is the least time between two looks at the rules: kube-proxy
	// writes its own many times a second. A look takes some processes.
	rulesInterval = time.Second
	peersFile     = "peers.json"
	rulesFile     = "rules.json"
	storeDir      = "ipam"
	lockFile      = "agent.lock"
)

// Agent is one node's. Set the exported fields, then call Run once.
type Agent struct {
	Config *Config
	Consul *consulapi.Client
	// Nomad may be nil: then lost addresses are not collected.
	Nomad *nomadapi.Client
	// Kube is asked for the Node called node.name; nil where there is none.
	Kube    kubernetes.Interface
	Version string
	Log     hclog.Logger

	id       fabric.ID
	keyPath  string
	endpoint netip.Addr
	registry *registry.Registry
	store    *ipam.Store // nil on a Kubernetes node
	guard    *guard.Guard
	metrics  *metrics
	consul   health

	claims chan claimed
	lists  chan registry.List
	net    chan string
	// rules has something in it when somebody has written rules, drifted when ours
	// are not as they should be.
	rules, drifted chan string
	// reclaim asks for a claim before its time.
	reclaim chan string
	// given has something in it when a pod has got an address.
	given chan string
	// assumed says that Nomad has not told id yet.
	assumed bool
	// told are the ranges of the Node's pods, once the API server has answered.
	told   atomic.Pointer[[]netip.Prefix]
	offers offers

	// What follows is the loop's own.
	state    peers.State
	backend  overlay.Backend
	unwatch  context.CancelFunc
	view     peers.View
	list     *registry.List
	again    time.Time
	refused  map[fabric.ID]string
	fenced   string
	problems map[string]string
	resolver *resolver.Resolver
	// answers says that the resolver listens.
	answers bool

	// seen is what status tells.
	seen atomic.Pointer[snapshot]
}

// Run returns when ctx ends, at once when the machine lacks what is needed, and
// when this turns out to be another node than it was taken for. It leaves device,
// routes and rules in place.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if err := a.prepare(ctx); err != nil {
		return err
	}
	lock, err := a.alone(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := a.serve(ctx); err != nil {
		return err
	}
	known, err := peers.Load(filepath.Join(a.Config.StateDir, peersFile), a.Config.Fabric, a.id)
	switch {
	case err != nil:
		a.Log.Error("starts without the peers of the last time", "error", err)
	case known != nil:
		a.state = *known
		a.view.Start(known.Peers)
		a.Log.Info("starts with the peers of the last time, until Consul answers", "peers", len(known.Peers))
		a.bind(ctx)
	}
	a.answerNames(ctx)
	if err := a.guard.Watch(ctx, func(what string) { wake(a.rules, what) }); err != nil {
		return err
	}
	go a.watchRules(ctx)
	if a.store != nil {
		if err := a.watchStore(ctx); err != nil {
			return err
		}
	}
	if a.Kube != nil {
		a.followNode(ctx, stop)
	}
	go a.claim(ctx, a.state.Own)
	w := &registry.Watcher{Registry: a.registry, Self: a.id, Parts: a.Config.Watch.Parts, Health: a.healthy, Handle: func(l registry.List) {
		select {
		case a.lists <- l:
		case <-ctx.Done():
		}
	}}
	go w.Run(ctx)
	if a.store != nil && a.Nomad != nil {
		go func() {
			if err := a.verify(ctx); err != nil {
				stop(err)
				return
			}
			go a.offer(ctx)
			a.collect(ctx)
		}()
	}
	a.loop(ctx)
	a.Log.Info("ends; device, routes and rules stay")
	if err := context.Cause(ctx); errors.Is(err, errRenamed) || errors.Is(err, errAnew) {
		return err
	}
	return nil
}

// alone waits until no other agent works on this machine's state: the one that is
// replaced may still be ending.
func (a *Agent) alone(ctx context.Context) (*os.File, error) {
	if err := os.MkdirAll(a.Config.StateDir, 0o755); err != nil {
		return nil, fmt.Errorf("stateDir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(a.Config.StateDir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("stateDir: %w", err)
	}
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }()
	select {
	case err = <-got:
	case <-time.After(time.Second):
		a.Log.Info("waits for another agent to end", "lock", f.Name())
		select {
		case err = <-got:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// wake never blocks: who is awake looks at everything.
func wake(c chan string, what string) {
	select {
	case c <- what:
	default:
	}
}

func (a *Agent) loop(ctx context.Context) {
	tick := time.NewTicker(audit)
	defer tick.Stop()
	a.reconcile(ctx, true)
	for {
		look := false
		select {
		case <-ctx.Done():
			return
		case c := <-a.claims:
			a.take(ctx, c)
		case l := <-a.lists:
			a.listed(l)
		case what := <-a.net:
			a.Log.Debug("looks at the network", "because", what)
		case what := <-a.drifted:
			a.Log.Debug("looks at the rules", "because", what)
			look = true
		case <-a.given:
			a.count()
			continue
		case <-a.due():
		case <-tick.C:
		}
		a.reconcile(ctx, look)
	}
}

// watchRules looks at the rules when somebody has written some, and every audit,
// and wakes the loop only when ours are not as they should be: what a look takes
// must not keep a new peer waiting.
func (a *Agent) watchRules(ctx context.Context) {
	tick := time.NewTicker(audit)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.rules:
		case <-tick.C:
		}
		drift, err := a.guard.Drift(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			wake(a.drifted, err.Error())
		case len(drift) > 0:
			wake(a.drifted, drift[0])
		}
		pause(ctx, rulesInterval)
	}
}

// due is when held peers are to be looked at again.
func (a *Agent) due() <-chan time.Time {
	if a.again.IsZero() {
		return nil
	}
	return time.After(time.Until(a.again))
}

func (a *Agent) listed(l registry.List) {
	a.list = &l
	if l.Incomplete != nil {
		a.Log.Warn("the list of nodes is not complete, nothing is taken away", "reason", l.Incomplete)
		if _, own := l.Nodes[a.id]; !own {
			wake(a.reclaim, vanished)
		}
	}
}

// take is told what a claim came to.
func (a *Agent) take(ctx context.Context, c claimed) {
	switch {
	case errors.Is(c.err, fabric.ErrOwned):
		a.fence(c.err.Error())
		return
	case c.err != nil:
		a.problem("claim", c.err)
		return
	}
	a.problem("claim", nil)
	a.problem("blocks", c.short)
	if a.backend == nil || a.state.Settings.Backend != c.settings.Backend || a.state.Settings.VNI != c.settings.VNI || a.state.Settings.Port != c.settings.Port || a.state.Own.Host != c.own.Host || a.state.Own.Endpoint != c.own.Endpoint || a.state.Own.MTU != c.own.MTU {
		a.state.Settings, a.state.Own = c.settings, c.own
		a.bind(ctx)
	}
	a.state.Settings, a.state.Own = c.settings, c.own
	a.answerNames(ctx)
	if a.store == nil {
		a.fence("")
		return
	}
	a.ensureBridge() // before a pod can have an address
	file := filepath.Join(a.Config.CNI.ConfigDir, cniconf.Network+".conflist")
	written, err := cniconf.Write(file, cniconf.Config{
		Bridge: a.Config.CNI.Bridge, MAC: a.bridgeMAC(), MTU: c.own.MTU, Blocks: c.own.CIDRs, DataDir: a.store.Dir(), HostPorts: a.Config.CNI.HostPorts,
	})
	a.problem("cni", err)
	if err == nil {
		// Not before: the file may have blocks that are another's by now.
		a.fence("")
	}
	a.offers.set(err == nil && a.fenced == "")
	if written {
		a.Log.Info("wrote the CNI network; a Nomad client that runs finds it at SIGHUP", "file", file, "blocks", c.own.CIDRs)
	}
}

// fence keeps new pods off a node whose addresses are another's in the record.
// Pods that run keep theirs: the others follow whom they followed.
func (a *Agent) fence(reason string) {
	if a.store != nil {
		a.problem("fence", a.store.Fence(reason))
	}
	if reason != "" && a.fenced != reason {
		a.Log.Error("gives no addresses any more", "reason", reason)
	}
	if reason == "" && a.fenced != "" {
		a.Log.Info("gives addresses again")
	}
	a.fenced = reason
	if reason != "" {
		a.offers.set(false)
	}
	a.metrics.fenced.Set(b2f(reason != ""))
}

func (a *Agent) prepare(ctx context.Context) error {
	var err error
	c := a.Config
	name := c.Node.ID
	last := peers.LastID(filepath.Join(c.StateDir, peersFile))
	if name == "" {
		if a.Kube != nil {
			name, err = a.nodeUID(ctx, last)
		} else {
			name, err = a.nomadID(ctx, last)
		}
		if err != nil {
			return err
		}
	}
	a.id = fabric.ID(c.Node.Kind + "/" + name)
	if err := a.id.Validate(); err != nil {
		return fmt.Errorf("node.id: %w", err)
	}
	a.keyPath = keyPath(c.StateDir, a.id, last)
	if a.endpoint, err = Endpoint(c.Node.Endpoint); err != nil {
		return err
	}
	if c.Node.Kind == fabric.KindNomad {
		if a.store, err = ipam.Open(filepath.Join(c.StateDir, storeDir)); err != nil {
			return err
		}
	}
	if a.guard, err = guard.New(filepath.Join(c.StateDir, rulesFile), a.Log.Named("guard")); err != nil {
		return err
	}
	a.registry = registry.New(a.Consul, c.Fabric)
	a.metrics = newMetrics()
	a.claims, a.lists = make(chan claimed), make(chan registry.List)
	a.net, a.rules, a.drifted, a.reclaim, a.given = make(chan string, 1), make(chan string, 1), make(chan string, 1), make(chan string, 1), make(chan string, 1)
	a.problems = map[string]string{}
	a.offers.changed = make(chan struct{}, 1)
	a.state.Fabric, a.state.ID = c.Fabric, a.id
	a.view.Hold = peers.DefaultHold
	a.Log.Info("starts", "version", a.Version, "node", a.id, "endpoint", a.endpoint, "fabric", c.Fabric)
	return nil
}
