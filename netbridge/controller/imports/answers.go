package imports

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/follow"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/loop"
)

// question is what Consul is asked for.
type question struct{ service, tag string }

// String is its name for the guard.
func (q question) String() string {
	if q.tag == "" {
		return q.service
	}
	return q.service + " with tag " + q.tag
}

// answers are Consul's, one watch a question. What Services ask for is asked once
// however many ask.
type answers struct {
	consul *api.Client
	log    hclog.Logger
	bell   loop.Bell

	mu    sync.Mutex
	known map[question]*watch
	names *watch
	// trouble is when Consul last failed to answer one of them.
	trouble time.Time
}

// watch is the last whole answer to one question; nil before the first.
type watch struct {
	end       context.CancelFunc
	instances *[]*api.ServiceEntry
	names     map[string]bool
	// failed is the last failure since then.
	failed string
}

// keep watches what is asked and nothing else. Whoever asks for all has the names
// watched, too.
func (a *answers) keep(ctx context.Context, asked map[question]bool, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for q, w := range a.known {
		if !asked[q] {
			w.end()
			delete(a.known, q)
		}
	}
	for q := range asked {
		if a.known[q] == nil {
			a.known[q] = a.watchInstances(ctx, q)
		}
	}
	switch {
	case all && a.names == nil:
		a.names = a.watchNames(ctx)
	case !all && a.names != nil:
		a.names.end()
		a.names = nil
	}
}

func (a *answers) watchInstances(ctx context.Context, q question) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{end: cancel}
	// All instances, not the passing ones: a service whose instances are all ill is
	// not one that Consul has lost.
	go follow.Run(ctx, func(o *api.QueryOptions) ([]*api.ServiceEntry, *api.QueryMeta, error) {
		return a.consul.Health().Service(q.service, q.tag, false, o)
	}, func(entries []*api.ServiceEntry, err error) {
		a.told(w, q.service, err, func() { w.instances = &entries })
	})
	return w
}

func (a *answers) watchNames(ctx context.Context) *watch {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{end: cancel}
	go follow.Run(ctx, a.consul.Catalog().Services, func(services map[string][]string, err error) {
		names := map[string]bool{}
		for name := range services {
			names[name] = true
		}
		a.told(w, "the names of all services", err, func() { w.names = names })
	})
	return w
}

// told keeps an answer. A failure leaves the last one: endpoints stay.
func (a *answers) told(w *watch, what string, err error, take func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		if w.failed != err.Error() {
			a.log.Warn("Consul does not answer, what is imported stays as it is", "about", what, "error", err)
		}
		w.failed, a.trouble = err.Error(), time.Now()
		return
	}
	w.failed = ""
	take()
	a.bell.Ring()
}

// about is the last answer; false before the first.
func (a *answers) about(q question) ([]*api.ServiceEntry, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.known[q]; w != nil && w.instances != nil {
		return *w.instances, true
	}
	return nil, false
}

func (a *answers) allNames() (map[string]bool, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names == nil || a.names.names == nil {
		return nil, false
	}
	return a.names.names, true
}

func (a *answers) lastTrouble() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trouble
}
