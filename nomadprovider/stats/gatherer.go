package stats

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

const (
	// Interval is how long what was gathered is told again.
	Interval = 10 * time.Second
	// Keep is how long values are told that can no longer be read, as long as
	// cAdvisor keeps its own (pkg/kubelet/cadvisor, statsCacheDuration).
	Keep = 2 * time.Minute
	// gatherTimeout bounds a gathering: metrics-server waits for ten seconds.
	gatherTimeout = 8 * time.Second

	driverDocker = "docker"
	driverQemu   = "qemu"
)

// Pod is a pod that has not ended.
type Pod struct {
	Object *corev1.Pod
	// Driver is its tasks'.
	Driver string
	// HostNetwork is set when it has its client's network, whose traffic is not its
	// own.
	HostNetwork bool
	// Containers are those that run.
	Containers []Container
}

// Container is one that runs: the current run of a task.
type Container struct {
	Name    string
	AllocID string
	// Client is the ID of the Nomad client.
	Client    string
	StartedAt time.Time
}

// Client is a Nomad client that the virtual node is made of.
type Client struct {
	ID string
	// DockerProxy is set when it has the docker proxy.
	DockerProxy bool
	// Counted is set when the node's capacity counts it.
	Counted bool
}

// Options are the parts a Gatherer is made of; all are needed.
type Options struct {
	// Node is the virtual node's name, Namespace its jobs' in Nomad.
	Node, Namespace string
	// Pods lists the node's, and Clients the Nomad clients that are there to answer.
	Pods    func() []Pod
	Clients func() []Client
	Source  *Source
	Clock   clock.PassiveClock
	Log     hclog.Logger
}

// Gatherer knows what one virtual node's pods use; it is safe for concurrent use.
type Gatherer struct {
	o       Options
	started time.Time

	mu   sync.Mutex
	last *snapshot
	// runs, pods and hosts are kept from one gathering to the next.
	runs  map[run]*record
	pods  map[types.UID]*total
	hosts map[string]*hostRecord
	node  total
}

// run is one of a container, by its allocation, task and start.
type run struct {
	allocID, container string
	started            int64
}

func (c Container) run() run { return run{c.AllocID, c.Name, c.StartedAt.UnixNano()} }

// record is what is known of a run.
type record struct {
	meter meter
	last  sample
	read  time.Time // by our own clock
	part  part
}

// hostRecord is what is known of a client's machine.
type hostRecord struct {
	meter meter
	last  hostSample
	read  time.Time
	part  part
}

// stale says of what was read at that time that it is no longer told.
func stale(read, now time.Time) bool { return read.IsZero() || now.Sub(read) > Keep }

// part is how much of a counter is in a total already.
type part struct{ counted float64 }

// total is a counter made of others that come and go.
type total struct{ nanoseconds float64 }

// add counts what has come to a part since it was added last.
func (t *total) add(p *part, now float64) {
	t.nanoseconds += now - p.counted
	p.counted = now
}

// New makes a Gatherer, which does nothing until it is asked.
func New(o Options) *Gatherer {
	return &Gatherer{o: o, started: o.Clock.Now(), runs: map[run]*record{}, pods: map[types.UID]*total{}, hosts: map[string]*hostRecord{}}
}

// snapshot is what one gathering found. It is not changed any more.
type snapshot struct {
	at   time.Time
	node nodeUsage
	pods []podUsage
	// err is of what could not be read.
	err error
}

// podUsage is what a pod uses.
type podUsage struct {
	Pod
	used       used
	containers []containerUsage
}

// containerUsage is what a container uses.
type containerUsage struct {
	Container
	sample
	used used
}

// nodeUsage is what the machines do that the node is made of.
type nodeUsage struct {
	used     used
	machines []hostSample
}

// used is a counter of CPU time, and the rate where it is known.
type used struct {
	at          time.Time
	nanoseconds uint64
	cores       *float64
}

// get gathers, unless that has been done just now. Those who ask meanwhile wait for
// the same.
func (g *Gatherer) get(ctx context.Context) *snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last != nil && g.o.Clock.Since(g.last.at) < Interval {
		return g.last
	}
	// Others get it, too, when who asked first has left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), gatherTimeout)
	defer cancel()
	pods, clients := g.o.Pods(), g.o.Clients()
	found := g.read(ctx, pods, clients)
	g.last = g.count(pods, clients, found)
	if g.last.err != nil {
		g.o.Log.Debug("not all statistics could be read", "node", g.o.Node, "error", g.last.err)
	}
	return g.last
}

// count adds what was found to what is known, and forgets what is over.
func (g *Gatherer) count(pods []Pod, clients []Client, found *findings) *snapshot {
	now := g.o.Clock.Now()
	s := &snapshot{at: now, err: errors.Join(found.errs...), node: g.countHosts(now, clients, found)}
	runs, totals := make(map[run]*record, len(g.runs)), make(map[types.UID]*total, len(pods))
	for _, p := range pods {
		t := g.pods[p.Object.UID]
		if t == nil {
			t = &total{}
		}
		totals[p.Object.UID] = t
		u := podUsage{Pod: p}
		for _, c := range p.Containers {
			r := g.runs[c.run()]
			if r == nil {
				r = &record{}
			}
			runs[c.run()] = r
			if sample, ok := found.containers[c.run()]; ok {
				r.meter.take(sample.cpu, c.StartedAt)
				r.last, r.read = sample, now
				t.add(&r.part, r.meter.total)
			}
			if !stale(r.read, now) {
				u.containers = append(u.containers, containerUsage{Container: c, sample: r.last, used: r.meter.used()})
			}
		}
		if len(u.containers) > 0 {
			u.used = t.used(u.containers)
			s.pods = append(s.pods, u)
		}
	}
	g.runs, g.pods = runs, totals
	return s
}

// countHosts does the same for the machines.
func (g *Gatherer) countHosts(now time.Time, clients []Client, found *findings) (u nodeUsage) {
	hosts := make(map[string]*hostRecord, len(clients))
	var cores float64
	for _, c := range clients {
		if !c.Counted {
			continue
		}
		h := g.hosts[c.ID]
		if h == nil {
			h = &hostRecord{}
		}
		hosts[c.ID] = h
		if sample, ok := found.hosts[c.ID]; ok {
			h.meter.take(sample.cpu, time.Time{})
			h.last, h.read = sample, now
			g.node.add(&h.part, h.meter.total)
		}
		if stale(h.read, now) {
			continue
		}
		u.machines = append(u.machines, h.last)
		u.used.at = later(u.used.at, h.meter.at)
		cores += h.meter.cores
	}
	g.hosts = hosts
	if len(u.machines) > 0 {
		u.used.nanoseconds, u.used.cores = uint64(g.node.nanoseconds), &cores
	}
	return u
}

// used is what the meter stands at.
func (m *meter) used() used {
	u := used{at: m.at, nanoseconds: uint64(m.total)}
	if m.known {
		u.cores = new(m.cores)
	}
	return u
}

// used is what a pod has: its rate is known when all its containers' are.
func (t *total) used(containers []containerUsage) used {
	u := used{nanoseconds: uint64(t.nanoseconds)}
	var cores float64
	known := true
	for _, c := range containers {
		u.at = later(u.at, c.used.at)
		if c.used.cores == nil {
			known = false
			continue
		}
		cores += *c.used.cores
	}
	if known {
		u.cores = &cores
	}
	return u
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
