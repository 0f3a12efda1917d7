package export

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/follow"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/loop"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/tell"
)

// room is its name in metrics.
const room = "export"

// callTimeout bounds one write.
const callTimeout = 5 * time.Second

// Exporter is the room. Set the exported fields, then call Run once; the listers'
// informers must have synced.
type Exporter struct {
	Consul *api.Client
	Fabric string
	// Node is the catalog's, which instances are on.
	Node       string
	Services   corelisters.ServiceLister
	Namespaces corelisters.NamespaceLister
	Slices     discoverylisters.EndpointSliceLister
	Guard      hold.Guard
	Events     *tell.Teller
	Metrics    *metrics.Metrics
	Log        hclog.Logger
	// Bell is rung when an informer has told something.
	Bell loop.Bell

	mu sync.Mutex // guards there
	// there is what the fabric's clusters have exported to Node.
	there map[string]*api.AgentService
	// held are the missing Services of the last pass.
	held []string
}

// Run returns when ctx ends.
func (e *Exporter) Run(ctx context.Context) {
	go follow.Run(ctx, func(q *api.QueryOptions) (*api.CatalogNodeServiceList, *api.QueryMeta, error) {
		return e.Consul.Catalog().NodeServiceList(e.Node, q)
	}, e.told)
	loop.Run(ctx, e.Bell, e.pass)
}

// told keeps what Consul says is there; after an error it is not known.
func (e *Exporter) told(list *api.CatalogNodeServiceList, err error) {
	var there map[string]*api.AgentService
	if err != nil {
		e.Log.Warn("Consul does not tell what is exported, it stays as it is", "error", err)
	} else {
		there = map[string]*api.AgentService{}
		if list != nil {
			for _, s := range list.Services {
				if From(e.Fabric, s.Meta) {
					there[s.ID] = s
				}
			}
		}
	}
	e.mu.Lock()
	e.there = there
	e.mu.Unlock()
	e.Bell.Ring()
}

// Names are the services of Consul's that are exported here; false if that is not
// known.
func (e *Exporter) Names() (map[string]bool, bool) {
	there := e.known()
	names := map[string]bool{}
	for _, s := range there {
		names[s.Service] = true
	}
	return names, there != nil
}

func (e *Exporter) known() map[string]*api.AgentService {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.there
}

func (e *Exporter) pass(ctx context.Context) (time.Time, error) {
	there := e.known()
	if there == nil {
		return time.Time{}, nil // it rings when there is an answer
	}
	again, err := e.align(ctx, there)
	if err != nil {
		e.Metrics.Errors.WithLabelValues(room).Inc()
		e.Log.Error("cannot export all", "error", err)
	}
	return again, err
}

// align brings what is there to what is wanted.
func (e *Exporter) align(ctx context.Context, there map[string]*api.AgentService) (time.Time, error) {
	cluster, err := e.cluster()
	if err != nil {
		return time.Time{}, err
	}
	// Another cluster's are none of ours, wanted or not.
	there = maps.Clone(there)
	maps.DeleteFunc(there, func(_ string, s *api.AgentService) bool { return s.Meta[MetaCluster] != cluster })
	wanted, present, err := e.wanted(cluster)
	if err != nil {
		return time.Time{}, err
	}
	// One that cannot be written, such as a name that the token has no right to, must
	// not keep what is gone in the catalog: its address may be another pod's by now.
	err = e.register(ctx, wanted, there)
	again, failed := e.deregister(ctx, wanted, there, present)
	return again, errors.Join(err, failed)
}

// cluster is what tells this one from others of its fabric.
func (e *Exporter) cluster() (string, error) {
	ns, err := e.Namespaces.Get(metav1.NamespaceSystem)
	if err != nil {
		return "", fmt.Errorf("read namespace %s, whose UID tells the cluster from others: %w", metav1.NamespaceSystem, err)
	}
	return string(ns.UID), nil
}

// wanted are the instances that are to be in Consul, and the Services that are
// there, exported or not. One that is wrong has no instances, and an Event.
func (e *Exporter) wanted(cluster string) (map[string]*api.AgentService, map[string]bool, error) {
	services, err := e.Services.List(labels.Everything())
	if err != nil {
		return nil, nil, err
	}
	wanted, present := map[string]*api.AgentService{}, map[string]bool{}
	events := e.Events.Begin()
	for _, svc := range services {
		present[svc.Namespace+"/"+svc.Name] = true
		ns, _ := e.Namespaces.Get(svc.Namespace) // one that is not known asks for nothing
		yes, err := annotations.Exports(svc, ns)
		if !yes {
			events.Wrong(svc, err)
			continue
		}
		own, err := e.Slices.EndpointSlices(svc.Namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: svc.Name}))
		if err != nil {
			return nil, nil, err
		}
		all, err := instances(e.Fabric, cluster, svc, own)
		events.Wrong(svc, err)
		maps.Copy(wanted, all)
	}
	e.Metrics.Wrong.WithLabelValues(room).Set(float64(events.End()))
	return wanted, present, nil
}

func (e *Exporter) register(ctx context.Context, wanted, there map[string]*api.AgentService) error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if is, ok := there[id]; ok && same(is, wanted[id]) {
			continue
		}
		// An address must be there and is nobody's: each instance has its own. Nobody
		// else's changes of the node are undone.
		reg := &api.CatalogRegistration{Node: e.Node, Address: "127.0.0.1", NodeMeta: map[string]string{MetaSource: Source, MetaFabric: e.Fabric},
			SkipNodeUpdate: true, Service: wanted[id]}
		err := e.write(ctx, func(q *api.WriteOptions) (*api.WriteMeta, error) { return e.Consul.Catalog().Register(reg, q) })
		if err != nil {
			errs = append(errs, fmt.Errorf("register %s in Consul: %w", id, err))
			continue
		}
		e.Log.Info("exported", "service", wanted[id].Service, "instance", id)
	}
	e.Metrics.Exported.Set(float64(len(wanted) - len(errs)))
	return errors.Join(errs...)
}

// deregister takes away what is not wanted.
func (e *Exporter) deregister(ctx context.Context, wanted, there map[string]*api.AgentService, present map[string]bool) (time.Time, error) {
	origins, missing := map[string]bool{}, map[string]bool{}
	var gone []string
	for id, s := range there {
		from := origin(s.Meta)
		origins[from] = true
		if wanted[id] != nil {
			continue
		}
		if present[from] {
			gone = append(gone, id)
		} else {
			missing[from] = true
		}
	}
	free, held, again := e.Guard.Release(time.Now(), slices.Collect(maps.Keys(missing)), len(origins))
	if len(held) > 0 && !slices.Equal(held, e.held) {
		e.Log.Error("many exported Services are missing at once, they stay in Consul for now", "services", held, "until", again.Format(time.TimeOnly))
	}
	e.held = held
	e.Metrics.Held.WithLabelValues(room).Set(float64(len(held)))
	for id, s := range there {
		if wanted[id] == nil && slices.Contains(free, origin(s.Meta)) {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	var errs []error
	for _, id := range gone {
		dereg := &api.CatalogDeregistration{Node: e.Node, ServiceID: id}
		err := e.write(ctx, func(q *api.WriteOptions) (*api.WriteMeta, error) { return e.Consul.Catalog().Deregister(dereg, q) })
		if err != nil {
			errs = append(errs, fmt.Errorf("deregister %s: %w", id, err))
			continue
		}
		e.Log.Info("no longer exported", "service", there[id].Service, "instance", id)
	}
	return again, errors.Join(errs...)
}

func (e *Exporter) write(ctx context.Context, do func(*api.WriteOptions) (*api.WriteMeta, error)) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := do((&api.WriteOptions{}).WithContext(ctx))
	return err
}
