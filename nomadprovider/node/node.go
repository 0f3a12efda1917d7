package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	vknode "github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// leaseSeconds and the ping's bounds are the kubelet's defaults
	// (pkg/kubelet/apis/config/v1beta1/defaults.go).
	leaseSeconds    = 40
	nodePing        = 10 * time.Second
	nodePingTimeout = 5 * time.Second
	// debounce gathers changes of clients into one status update.
	debounce = time.Second
	// refresh is how often everything is looked at without a reason.
	refresh = 10 * time.Second
	// askEvery bounds how often Nomad is asked for its scheduler's settings.
	askEvery = 5 * time.Minute
	// askPoolEvery bounds how often it is asked whether an empty pool exists.
	askPoolEvery = 30 * time.Second
)

// ClientSource is what a Node needs of [Clients].
type ClientSource interface {
	Healthy() (ok bool, since time.Time, reason string)
	Synced() bool
	List() []ClientInfo
	Subscribe() (changed <-chan struct{}, stop func())
	PoolExists(ctx context.Context, pool string) (bool, error)
	MemoryOversubscription(ctx context.Context, pool string) (bool, error)
}

var _ ClientSource = (*Clients)(nil)

// Options are what a Node is made from; Clock and Recorder may be left out.
type Options struct {
	Config  config.VirtualNode
	Clients ClientSource
	Kube    kubernetes.Interface
	// Region is Nomad's, as [Clients.Region] tells it.
	Region string
	// NodeIP and Port are where the kubelet API of this node listens.
	NodeIP string
	Port   int32
	// Version is this program's own; see [KubeletVersion].
	Version  string
	Recorder record.EventRecorder
	Log      hclog.Logger
	Clock    clock.WithTicker
}

// Node is one virtual node.
type Node struct {
	o      Options
	taints []corev1.Taint
	ref    *corev1.ObjectReference

	mu sync.Mutex
	// sum and oversubscribed are what Profile is made of.
	sum            poolSummary
	oversubscribed bool
	conditions     []corev1.NodeCondition
	readiness      readiness
	// outage is the reason of the fault that was last told of by an event.
	outage string
	// adopted is the status of a Node that was there before this process; its
	// capacity is kept until Nomad has been asked.
	adopted *corev1.NodeStatus

	askedScheduler, askedPool time.Time
	askedAll, poolUnknown     bool
	deniedOnce                sync.Once

	// push holds the newest Node that Virtual Kubelet has not been given yet.
	push     chan *corev1.Node
	offering sync.Mutex
	// lastPushed is compared with what the API server has.
	lastPushed *corev1.Node
}

var _ vknode.NodeProvider = (*Node)(nil)

// New makes a virtual node; nothing happens until Run.
func New(o Options) *Node {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Recorder == nil {
		o.Recorder = record.NewFakeRecorder(0)
	}
	n := &Node{
		o:         o,
		readiness: readiness{after: o.Config.UnreachableAfter.Duration},
		// As the kubelet's events: the UID is the name, so that kubectl
		// describe finds them whichever incarnation of the Node they are of.
		ref:  &corev1.ObjectReference{Kind: "Node", Name: o.Config.Name, UID: types.UID(o.Config.Name)},
		push: make(chan *corev1.Node, 1),
		sum:  poolSummary{mhzPerCore: defaultMHzPerCore},
	}
	if o.Config.Taints != nil {
		n.taints = *o.Config.Taints
	}
	if o.Config.MemoryOversubscription != nil {
		n.oversubscribed = *o.Config.MemoryOversubscription
	}
	return n
}

// Name of the Node.
func (n *Node) Name() string { return n.o.Config.Name }

// Counts tells whether the Node's capacity counts the client.
func (n *Node) Counts(c ClientInfo) bool {
	return c.Ready() && inPool(c, n.o.Config.NodePool, n.o.Config.Datacenters)
}

// Has tells whether the client is one of the Node's, ready or not.
func (n *Node) Has(c ClientInfo) bool {
	return inPool(c, n.o.Config.NodePool, n.o.Config.Datacenters)
}

// Profile is what translation has to know of this node, as of now.
func (n *Node) Profile() translate.NodeProfile {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := config.Profile(n.o.Config)
	p.Region, p.MHzPerCore, p.MemoryOversubscription = n.o.Region, n.sum.mhzPerCore, n.oversubscribed
	p.DockerProxy, p.KVM = n.sum.dockerProxy, n.sum.kvm > 0
	return p
}

// Ping tells Virtual Kubelet that this process is alive, which is what the
// Node's lease stands for. Nomad's state is told by conditions instead: without
// a lease Kubernetes would only know that the node is gone, not why.
func (n *Node) Ping(ctx context.Context) error { return ctx.Err() }

// NotifyNodeStatus hands the newest Node to Virtual Kubelet whenever there is
// one. The callback blocks while an update is under way, hence the goroutine.
func (n *Node) NotifyNodeStatus(ctx context.Context, cb func(*corev1.Node)) {
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case node := <-n.push:
				cb(node)
			}
		}
	}()
}

// offer replaces the Node that waits to be handed over. It does not block:
// the mutex makes it the only one that fills the channel.
func (n *Node) offer(node *corev1.Node) {
	n.offering.Lock()
	defer n.offering.Unlock()
	select {
	case <-n.push:
	default:
	}
	n.push <- node
}

// build makes the Node as it should be now; recheck is when it should be built
// again even if nothing happens, zero for never.
func (n *Node) build() (node *corev1.Node, recheck time.Duration) {
	now := n.o.Clock.Now()
	ok, since, reason := n.o.Clients.Healthy()
	synced := n.o.Clients.Synced()
	c := n.o.Config
	sum := summarize(n.o.Clients.List(), c.NodePool, c.Datacenters, c.PodsPerClient)

	n.mu.Lock()
	defer n.mu.Unlock()
	if synced {
		n.sum = sum
	} else if n.adopted != nil {
		sum.capacity, sum.allocatable = n.adopted.Capacity, n.adopted.Allocatable
	}
	f := n.faultLocked(ok, since, reason, sum)
	v := n.readiness.judge(now, f)
	n.tellLocked(f)
	status := nodeStatus(statusInput{
		now: now, name: c.Name, nodeIP: n.o.NodeIP, port: n.o.Port, version: n.o.Version,
		pool: c.NodePool, sum: sum, verdict: v, reachable: ok, unreachable: reason,
		previous: n.conditions, network: c.Network,
	})
	n.conditions = status.DeepCopy().Conditions
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        c.Name,
			Labels:      labels(c.Name, c.NodePool, n.o.Region, c.Network, sum, c.Labels),
			Annotations: map[string]string{AnnotationProvider: "nomad"},
		},
		Status: status,
	}, v.recheck
}

// faultLocked says what keeps pods from being placed, if anything.
func (n *Node) faultLocked(ok bool, since time.Time, reason string, sum poolSummary) fault {
	pool := n.o.Config.NodePool
	switch {
	case !ok:
		return fault{reason: ReasonNomadUnreachable, message: "Nomad is not reachable: " + reason, since: since}
	case sum.ready > 0:
		return fault{}
	case n.poolUnknown:
		return fault{reason: ReasonUnknownPool, message: fmt.Sprintf(
			"Nomad has no node pool %q: create it (nomad node pool apply) or correct nodePool of virtual node %q",
			pool, n.o.Config.Name)}
	case sum.members == 0 && len(n.o.Config.Datacenters) > 0:
		return fault{reason: ReasonNoReadyClients, message: fmt.Sprintf(
			"node pool %q has no clients in the datacenters %v", pool, n.o.Config.Datacenters)}
	case sum.members == 0:
		return fault{reason: ReasonNoReadyClients, message: fmt.Sprintf(
			"node pool %q has no clients, or does not exist: set node_pool = %q in the client block of a Nomad client", pool, pool)}
	}
	return fault{reason: ReasonNoReadyClients, message: fmt.Sprintf(
		"none of the %d clients of node pool %q is ready and eligible", sum.members, pool)}
}

// tellLocked writes an event when a fault begins or ends.
func (n *Node) tellLocked(f fault) {
	if f.reason == n.outage {
		return
	}
	if f.reason == "" {
		n.o.Recorder.Event(n.ref, corev1.EventTypeNormal, ReasonNomadReachable, "Nomad is reachable and has ready clients again")
	} else {
		n.o.Recorder.Event(n.ref, corev1.EventTypeWarning, f.reason, f.message)
	}
	n.outage = f.reason
}

// ask asks Nomad what the event stream does not tell, if that is due.
func (n *Node) ask(ctx context.Context) {
	if ok, _, _ := n.o.Clients.Healthy(); !ok {
		return
	}
	now, pool := n.o.Clock.Now(), n.o.Config.NodePool
	if n.o.Config.MemoryOversubscription == nil && (!n.askedAll || now.Sub(n.askedScheduler) >= askEvery) {
		n.askedAll, n.askedScheduler = true, now
		on, err := n.o.Clients.MemoryOversubscription(ctx, pool)
		switch {
		case err == nil:
			n.mu.Lock()
			n.oversubscribed = on
			n.mu.Unlock()
		case isStatus(err, 403):
			n.deniedOnce.Do(func() {
				n.o.Log.Info("the Nomad token may not read the scheduler's configuration (operator read): "+
					"memory limits above requests are not used; set memoryOversubscription of the virtual node to say otherwise",
					"node", n.Name())
			})
		default:
			n.o.Log.Warn("Nomad's memory oversubscription is not known", "node", n.Name(), "error", err)
		}
	}
	n.askPool(ctx, now, pool)
}

// askPool finds out whether a pool without clients exists at all.
func (n *Node) askPool(ctx context.Context, now time.Time, pool string) {
	n.mu.Lock()
	empty, unknown := n.sum.members == 0 && n.o.Clients.Synced(), n.poolUnknown
	n.mu.Unlock()
	if !empty {
		unknown = false
	} else if n.askedPool.IsZero() || now.Sub(n.askedPool) >= askPoolEvery {
		n.askedPool = now
		exists, err := n.o.Clients.PoolExists(ctx, pool)
		if err != nil {
			n.o.Log.Debug("whether the node pool exists is not known", "pool", pool, "error", err)
			return
		}
		unknown = !exists
	}
	n.mu.Lock()
	n.poolUnknown = unknown
	n.mu.Unlock()
}
