package controller

import (
	"context"
	"sync/atomic"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/nomad-kubelet/nomad-kubelet/internal/election"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/collect"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/export"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/imports"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/loop"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/tell"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// Controller is one process. Set the fields, then call Run once.
type Controller struct {
	Config *Config
	Consul *consulapi.Client
	// Nomad may be nil: then records of Nomad clients stay.
	Nomad   *nomadapi.Client
	Kube    kubernetes.Interface
	Version string
	Log     hclog.Logger

	metrics *metrics.Metrics
	// ready says that this process leads and has seen all, or knows who leads.
	ready atomic.Bool
}

// Run acts whenever it leads, until ctx ends or something is wrong that another try
// would not mend.
func (c *Controller) Run(ctx context.Context) error {
	c.metrics = metrics.New()
	if err := c.serve(ctx); err != nil {
		return err
	}
	le := c.Config.LeaderElection
	c.Log.Info("starts", "version", c.Version, "fabric", c.Config.Fabric, "lease", le.Namespace+"/"+le.Name)
	e := election.Election{
		Kube: c.Kube, Log: c.Log, Namespace: le.Namespace, Name: le.Name, LeaseDuration: le.LeaseDuration.Duration,
		Led: func(string) { c.ready.Store(true) },
	}
	return e.Run(ctx, c.lead)
}

// lead runs one term of office. All state is made anew.
func (c *Controller) lead(ctx context.Context) error {
	c.ready.Store(false)
	defer c.ready.Store(false)
	c.metrics.Leads.Set(1)
	defer c.metrics.Leads.Set(0)
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: c.Kube.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "netbridge"})

	factory := informers.NewSharedInformerFactoryWithOptions(c.Kube, 0, informers.WithTransform(strip))
	defer factory.Shutdown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Shutdown, which waits
	rooms, err := c.rooms(factory, recorder)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if ctx.Err() != nil {
		return nil // the term has ended before the API server had told all
	}
	c.ready.Store(true)
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range rooms {
		g.Go(func() error { run(ctx); return nil })
	}
	return g.Wait()
}

// strip leaves out what no room looks at.
func strip(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	if n, ok := obj.(*corev1.Node); ok {
		n.Status = corev1.NodeStatus{}
	}
	return obj, nil
}

func (c *Controller) rooms(factory informers.SharedInformerFactory, recorder record.EventRecorder) ([]func(context.Context), error) {
	var rooms []func(context.Context)
	reg := registry.New(c.Consul, c.Config.Fabric)
	core, endpoints := factory.Core().V1(), factory.Discovery().V1().EndpointSlices()
	guard := hold.Guard{Hold: c.Config.Hold.Duration}
	if !c.Config.Collect.Disabled {
		rooms = append(rooms, (&collect.Collector{
			Registry: reg, Nomad: c.Nomad, Nodes: core.Nodes().Lister(), After: c.Config.Collect.After.Duration,
			Interval: c.Config.Collect.Interval.Duration, Guard: guard, Metrics: c.metrics, Log: c.Log.Named("collect"),
		}).Run)
	}
	nobody := func() (map[string]bool, bool) { return nil, true }
	exported := nobody
	if !c.Config.Export.Disabled {
		e := &export.Exporter{
			Consul: c.Consul, Fabric: c.Config.Fabric, Node: c.Config.Export.Node, Services: core.Services().Lister(),
			Namespaces: core.Namespaces().Lister(), Slices: endpoints.Lister(), Guard: guard,
			Events: &tell.Teller{Recorder: recorder, Reason: "ConsulExport"}, Metrics: c.metrics, Log: c.Log.Named("export"), Bell: loop.NewBell(),
		}
		if err := e.Bell.Watch(core.Services().Informer(), core.Namespaces().Informer(), endpoints.Informer()); err != nil {
			return nil, err
		}
		rooms, exported = append(rooms, e.Run), e.Names
	}
	if !c.Config.Import.Disabled {
		i := &imports.Importer{
			Consul: c.Consul, Kube: c.Kube, Fabric: c.Config.Fabric, Services: core.Services().Lister(),
			Namespaces: core.Namespaces().Lister(), Slices: endpoints.Lister(), Exported: exported, Intact: reg.Intact, Hold: c.Config.Hold.Duration,
			Events: &tell.Teller{Recorder: recorder, Reason: "ConsulImport"}, Metrics: c.metrics, Log: c.Log.Named("import"), Bell: loop.NewBell(),
		}
		if err := i.Bell.Watch(core.Services().Informer(), core.Namespaces().Informer(), endpoints.Informer()); err != nil {
			return nil, err
		}
		rooms = append(rooms, i.Run)
	}
	return rooms, nil
}
