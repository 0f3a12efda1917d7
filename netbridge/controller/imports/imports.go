package imports

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/loop"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/tell"
)

// room is its name in metrics.
const room = "import"

// Importer is the room. Set the exported fields, then call Run once; the listers'
// informers must have synced.
type Importer struct {
	Consul     *api.Client
	Kube       kubernetes.Interface
	Fabric     string
	Services   corelisters.ServiceLister
	Namespaces corelisters.NamespaceLister
	Slices     discoverylisters.EndpointSliceLister
	// Exported are the services of Consul's that this fabric exports; false if that is
	// not known.
	Exported func() (map[string]bool, bool)
	// Intact says why what Consul holds is not all there is.
	Intact func(context.Context) error
	// Hold is how long what is missing in numbers is kept.
	Hold    time.Duration
	Events  *tell.Teller
	Metrics *metrics.Metrics
	Log     hclog.Logger
	// Bell is rung when an informer has told something.
	Bell loop.Bell

	answers answers
	// lost guards the endpoints of services that Consul does not know any more, and
	// the Services that were made for them.
	lost hold.Guard
	held []string
}

// Run returns when ctx ends.
func (i *Importer) Run(ctx context.Context) {
	i.answers.consul, i.answers.log, i.answers.bell = i.Consul, i.Log, i.Bell
	i.answers.known = map[question]*watch{}
	i.lost.Hold = i.Hold
	loop.Run(ctx, i.Bell, i.pass)
}

// state is what one pass looks at, and what it comes to.
type state struct {
	services []*corev1.Service
	asked    map[question]bool
	all      bool
	events   *tell.Pass
	// targets are the Services with endpoints from Consul.
	targets []target
	// wishes are Services that Namespaces ask for, unasked those that were made and
	// nobody asks for any more.
	wishes  []wish
	unasked []*corev1.Service
	// lost are those services of Consul's in use, known, that it has no more.
	lost, known map[string]bool
	endpoints   int
	errs        []error
}

// target is one Service that imports, rightly.
type target struct {
	svc *corev1.Service
	q   question
	has []*discoveryv1.EndpointSlice
}

func (i *Importer) pass(ctx context.Context) (time.Time, error) {
	s := &state{asked: map[question]bool{}, lost: map[string]bool{}, known: map[string]bool{}, events: i.Events.Begin()}
	err := i.look(ctx, s)
	var again time.Time
	if err == nil {
		i.answers.keep(ctx, s.asked, s.all)
		again = i.act(ctx, s)
		err = errors.Join(s.errs...)
	}
	i.Metrics.Wrong.WithLabelValues(room).Set(float64(s.events.End()))
	if err != nil {
		i.Metrics.Errors.WithLabelValues(room).Inc()
		i.Log.Error("cannot import all", "error", err)
	}
	return again, err
}

// look finds out who asks for what, and takes away the endpoints of those who do
// not ask any more.
func (i *Importer) look(ctx context.Context, s *state) (err error) {
	if s.services, err = i.Services.List(labels.Everything()); err != nil {
		return err
	}
	if err := i.lookAtNamespaces(s); err != nil {
		return err
	}
	for _, svc := range s.services {
		has, err := i.slices(svc)
		if err != nil {
			return err
		}
		name, tag, err := annotations.Imports(svc)
		s.events.Wrong(svc, err)
		if name == "" {
			for _, slice := range has {
				s.fail(i.removeSlice(ctx, slice))
			}
			continue
		}
		t := target{svc, question{name, tag}, has}
		s.asked[t.q] = true
		s.targets = append(s.targets, t)
	}
	return nil
}

func (s *state) fail(err error) {
	if err != nil {
		s.errs = append(s.errs, err)
	}
}

// slices are the Service's that this controller manages.
func (i *Importer) slices(svc *corev1.Service) ([]*discoveryv1.EndpointSlice, error) {
	return i.Slices.EndpointSlices(svc.Namespace).List(labels.SelectorFromSet(labels.Set{
		discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: annotations.Manager,
	}))
}

// act brings what was looked at to what Consul says.
func (i *Importer) act(ctx context.Context, s *state) time.Time {
	for _, t := range s.targets {
		i.bringEndpoints(ctx, s, t)
	}
	i.Metrics.Imported.Set(float64(s.endpoints))
	i.makeServices(ctx, s)
	free, again := i.release(ctx, s)
	for _, t := range s.targets {
		if slices.Contains(free, t.q.String()) {
			for _, slice := range t.has {
				s.fail(i.removeSlice(ctx, slice))
			}
		}
	}
	for _, w := range s.wishes {
		if w.made() && slices.Contains(free, w.question().String()) {
			s.fail(i.removeService(ctx, w.is, "Consul has it no more"))
		}
	}
	return again
}

// release asks the guard which of the lost may go. While Consul may not have all
// that it had, none may.
func (i *Importer) release(ctx context.Context, s *state) ([]string, time.Time) {
	now := time.Now()
	if t := i.answers.lastTrouble(); !t.IsZero() {
		i.lost.Doubt(t)
	}
	if len(s.lost) > 0 {
		if err := i.Intact(ctx); err != nil {
			i.lost.Doubt(now)
			i.lost.Release(now, nil, 0)
			i.Log.Warn("Consul may have lost what it had, what is imported stays as it is", "error", err)
			return nil, now.Add(intactRetry)
		}
	}
	free, held, again := i.lost.Release(now, slices.Collect(maps.Keys(s.lost)), len(s.known))
	if len(held) > 0 && !slices.Equal(held, i.held) {
		i.Log.Error("imported services are missing in Consul, they stay for now", "services", held, "until", again.Format(time.TimeOnly))
	}
	i.held = held
	i.Metrics.Held.WithLabelValues(room).Set(float64(len(held)))
	return free, again
}

// intactRetry is how soon after a doubt Consul is looked at again.
const intactRetry = 2 * time.Second
