package prober

import (
	"context"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
)

// Options are the parts a Prober is made of; all are needed.
type Options struct {
	Exec  Exec
	Clock clock.WithTicker
	// Agent is how network probes call themselves, such as kube-probe/1.35.
	Agent string
	Log   hclog.Logger
	// Report is told what comes of the probes, by several goroutines at once.
	Report func(types.UID, probes.Report)
	// Made is told of every attempt, of those over the network some seconds later.
	Made func(types.UID, probes.Attempt)
}

// Prober runs the probes of pods; it is safe for concurrent use.
type Prober struct {
	Options
	group sync.WaitGroup

	mu   sync.Mutex
	pods map[types.UID]*pod
}

// Target is where the probes of a pod are run.
type Target struct {
	Namespace string // Nomad's
	AllocID   string
	Driver    string // of the containers
	// Task runs the network probes; empty while there is none or it does not run.
	Task string
}

// pod is a pod that has, or had, probes.
type pod struct {
	stop   context.CancelFunc
	target Target
	exec   *probes.Set
	stream *stream
}

// New makes a Prober without pods.
func New(o Options) *Prober { return &Prober{Options: o, pods: map[types.UID]*pod{}} }

// Update makes these the probes of a pod that run, until ctx ends, another
// Update or Drop. It costs little if nothing has changed.
func (p *Prober) Update(ctx context.Context, uid types.UID, t Target, list []probes.Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.pods[uid]
	if known != nil && known.target.AllocID != t.AllocID {
		known.stop()
		known = nil
	}
	if known == nil {
		if len(list) == 0 {
			return
		}
		known = p.add(ctx, uid, t)
	}
	known.target = t
	var commands, network []probes.Probe
	for _, probe := range list {
		if probe.Action.Exec != nil {
			commands = append(commands, probe)
		} else {
			network = append(network, probe)
		}
	}
	known.exec.Update(commands)
	known.stream.update(t, network)
}

func (p *Prober) add(ctx context.Context, uid types.UID, t Target) *pod {
	ctx, stop := context.WithCancel(ctx)
	report := func(r probes.Report) { p.Report(uid, r) }
	made := func(a probes.Attempt) { p.Made(uid, a) }
	n := &pod{
		stop:   stop,
		exec:   probes.NewSet(ctx, command{p.Exec, t}, p.Clock, report, made),
		stream: newStream(p.Options, p.Log.With("pod", uid), report, made),
	}
	p.pods[uid] = n
	p.group.Go(func() { <-ctx.Done(); n.exec.Wait() })
	p.group.Go(func() { n.stream.run(ctx) })
	return n
}

// Drop ends all probes of a pod.
func (p *Prober) Drop(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.pods[uid]; known != nil {
		known.stop()
		delete(p.pods, uid)
	}
}

// Wait returns when nothing runs any more, after the contexts of all updates
// have ended.
func (p *Prober) Wait() { p.group.Wait() }

// Pods lists those that have probes, sorted.
func (p *Prober) Pods() []types.UID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []types.UID
	for uid := range p.pods {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}
