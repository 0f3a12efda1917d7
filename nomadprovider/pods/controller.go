package pods

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/prober"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Node is what this package needs of a virtual node.
type Node interface {
	Name() string
	// Profile is the node as translation sees it now.
	Profile() translate.NodeProfile
	// HostIP is the address of a Nomad client, empty when it is not known.
	HostIP(nomadNodeID string) string
	// HostVolume is where the node's Nomad clients have the host volume of that name;
	// see [Controller.ClientsChanged].
	HostVolume(name string) (paths []string)
}

// Options are the parts a Controller is made of; all are needed.
type Options struct {
	Kube     kubernetes.Interface
	Nomad    *api.Client
	Exec     prober.Exec
	Cluster  string
	Nodes    []Node
	Recorder record.EventRecorder
	Clock    clock.WithTicker
	Log      hclog.Logger
	// OrphanGuard is how long many jobs without pods are left alone; see
	// orphans.go.
	OrphanGuard time.Duration
	// ProbeAgent is how network probes call themselves, such as kube-probe/1.35.
	ProbeAgent string
	// Workers is how many pods are worked on at once.
	Workers int
}

// Controller reconciles the pods of the virtual nodes.
type Controller struct {
	Options
	queue     workqueue.TypedRateLimitingInterface[types.UID]
	cache     *allocs.Cache
	objects   *projection.Objects
	writer    *projection.Writer
	prober    *prober.Prober
	probes    *probeMetrics
	informers []cache.SharedIndexInformer
	services  corelisters.ServiceLister
	factory   informers.SharedInformerFactory
	policies  *policies
	nodes     map[string]Node
	life      context.Context // the watches of objects end with it

	mu    sync.Mutex
	state map[types.UID]*podState
	guard orphanGuard
	// handlers are the lifecycle hooks that run.
	handlers sync.WaitGroup
	// starting are the pods that were registered and of which nothing has been
	// told yet.
	starting map[types.UID]struct{}
	// holds are the claims of pods, and waiting those that wait for others' or for
	// clients; see claims.go.
	holds   map[types.UID]hold
	waiting map[types.UID]struct{}
}

// podState is what is remembered of a pod between passes. All of it can be
// lost: it saves work or makes a message better.
type podState struct {
	gone  bool // the deletion of the pod was seen
	grace *int64
	// namespace is Nomad's, and driver the containers', of a pod that is gone.
	namespace, driver string
	// gates is what was last written into a task's gate.
	gates map[string]string
	// registered is when this process set out to register the job; zero: a
	// former self did.
	registered time.Time
	// startFailures and crashes are kept by task.
	startFailures map[string]uint64
	crashes       map[string]*crash
	// messages are the last words of each task's last run.
	messages map[string]translate.Message
	// images are those that each task's last run has, as far as they are known.
	images map[string]imageOf
	// projected says that the Variable was written by this process, from items;
	// refresh is when a token in it wants replacing.
	projected bool
	dirty     bool
	items     []translate.Item
	refresh   time.Time
	files     files
	hooks     map[hookKey]*hookRun
	// kills are the containers that are being stopped, by task.
	kills map[string]*kill
	// windDown is until when a pod whose end has come by itself is to have ended.
	windDown time.Time
	// probed is by task.
	probed map[string]*probed
	// retry is kept while nothing of the pod has started; see again.go.
	retry retry
	// ephemeral is what the last look found of the ephemeral containers, and
	// ephemeralRetry is kept of those that could not be started.
	ephemeral      map[string]translate.EphemeralFacts
	ephemeralRetry map[string]retry
	// debugged says of a pod that is gone that it had ephemeral containers.
	debugged bool
}

const byUID = "uid"

// passTimeout is how long one pass may take, so that a Nomad that has gone
// without a word does not hold a worker until the kernel gives up on it.
const passTimeout = time.Minute

// New makes a Controller; nothing runs yet.
func New(o Options) *Controller {
	c := &Controller{
		Options: o,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](50*time.Millisecond, 30*time.Second),
			workqueue.TypedRateLimitingQueueConfig[types.UID]{Name: "pods", Clock: o.Clock}),
		nodes:    map[string]Node{},
		state:    map[types.UID]*podState{},
		starting: map[types.UID]struct{}{},
		holds:    map[types.UID]hold{},
		waiting:  map[types.UID]struct{}{},
	}
	namespaces := map[string]bool{}
	var list []string
	for _, n := range o.Nodes {
		c.nodes[n.Name()] = n
		if ns := n.Profile().Namespace; !namespaces[ns] {
			namespaces[ns] = true
			list = append(list, ns)
		}
		c.informers = append(c.informers, c.podInformer(n.Name()))
	}
	c.cache = allocs.New(o.Nomad, list, o.Cluster, c.enqueue, o.Log.Named("allocs"))
	c.objects = projection.NewObjects(o.Kube, c.changed)
	c.writer = projection.NewWriter(o.Kube, c.objects, o.Clock)
	c.probes = newProbeMetrics(o.Nodes)
	c.prober = prober.New(prober.Options{Exec: o.Exec, Clock: o.Clock, Agent: o.ProbeAgent, Log: o.Log.Named("probes"), Report: c.reported, Made: c.attempted})
	c.factory = informers.NewSharedInformerFactory(o.Kube, 0)
	c.services = c.factory.Core().V1().Services().Lister()
	c.policies = newPolicies(c)
	return c
}

func (c *Controller) enqueue(uid types.UID) { c.queue.Add(uid) }

// changed is told of pods whose projected objects changed.
func (c *Controller) changed(uid types.UID) {
	c.with(uid, func(s *podState) { s.dirty = true })
	c.queue.Add(uid)
}

// with runs f on what is remembered of a pod.
func (c *Controller) with(uid types.UID, f func(*podState)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state[uid]
	if s == nil {
		s = &podState{
			gates: map[string]string{}, startFailures: map[string]uint64{}, crashes: map[string]*crash{}, messages: map[string]translate.Message{},
			images: map[string]imageOf{},
			hooks:  map[hookKey]*hookRun{}, kills: map[string]*kill{}, probed: map[string]*probed{},
		}
		c.state[uid] = s
	}
	f(s)
}

func (c *Controller) forget(uid types.UID) {
	c.mu.Lock()
	delete(c.state, uid)
	delete(c.starting, uid)
	c.mu.Unlock()
	c.letGo(uid)
	c.objects.Release(uid)
	c.prober.Drop(uid)
	c.probes.forget(uid)
	c.queue.Forget(uid)
}

func (c *Controller) podInformer(node string) cache.SharedIndexInformer {
	only := fields.OneTermEqualSelector("spec.nodeName", node).String()
	pods := c.Kube.CoreV1().Pods(metav1.NamespaceAll)
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return pods.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return pods.Watch(ctx, o)
		},
	}, c.Kube)
	inf := cache.NewSharedIndexInformer(lw, &corev1.Pod{}, 0, cache.Indexers{
		byUID:                func(x any) ([]string, error) { return []string{string(x.(*corev1.Pod).UID)}, nil },
		byHostPort:           func(x any) ([]string, error) { return hostPorts(x.(*corev1.Pod)), nil },
		cache.NamespaceIndex: cache.MetaNamespaceIndexFunc,
	})
	_, _ = inf.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only on a stopped informer
		AddFunc: func(x any) {
			c.enqueue(x.(*corev1.Pod).UID)
			c.policies.enqueue(x.(*corev1.Pod).UID)
		},
		UpdateFunc: func(old, x any) {
			// A pod of the same name may have taken the other's place between
			// two lists.
			if was := old.(*corev1.Pod); was.UID != x.(*corev1.Pod).UID {
				c.enqueue(was.UID)
			}
			c.tellImages(old.(*corev1.Pod), x.(*corev1.Pod))
			if c.metadataChanged(old.(*corev1.Pod), x.(*corev1.Pod)) {
				c.policies.enqueue(x.(*corev1.Pod).UID)
				c.changed(x.(*corev1.Pod).UID)
				return
			}
			c.enqueue(x.(*corev1.Pod).UID)
		},
		DeleteFunc: c.podDeleted,
	})
	return inf
}

// metadataChanged tells whether what the downward API shows has changed.
func (c *Controller) metadataChanged(a, b *corev1.Pod) bool {
	return !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations)
}

// podDeleted remembers that a deletion was seen with own eyes; a pod that was
// only missing from a list is an orphan's case.
func (c *Controller) podDeleted(x any) {
	switch x := x.(type) {
	case *corev1.Pod:
		c.policies.enqueue(x.UID)
		namespace, driver := c.nodes[x.Spec.NodeName].Profile().Namespace, c.driver(x)
		c.with(x.UID, func(s *podState) {
			s.gone, s.grace, s.namespace, s.driver = true, x.DeletionGracePeriodSeconds, namespace, driver
			s.debugged = len(x.Spec.EphemeralContainers) > 0
		})
		c.enqueue(x.UID)
	case cache.DeletedFinalStateUnknown:
		if pod, ok := x.Obj.(*corev1.Pod); ok {
			c.enqueue(pod.UID)
			c.policies.enqueue(pod.UID)
		}
	}
}

// Run works until ctx ends. It returns an error only when it could not start.
func (c *Controller) Run(ctx context.Context) error {
	c.life = ctx
	var wg sync.WaitGroup
	defer c.prober.Wait()
	defer wg.Wait()
	defer c.handlers.Wait()
	defer c.queue.ShutDown()
	c.factory.Core().V1().Services().Informer()
	c.factory.Start(ctx.Done())
	synced := []cache.InformerSynced{c.factory.Core().V1().Services().Informer().HasSynced}
	for _, inf := range c.informers {
		wg.Go(func() { inf.RunWithContext(ctx) })
		synced = append(synced, inf.HasSynced)
	}
	wg.Go(func() { c.cache.Run(ctx) })
	// Acting on half a view would register twice or stop what is wanted.
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil
	}
	if err := c.cache.WaitForSync(ctx); err != nil {
		return nil
	}
	c.Log.Info("the views of Kubernetes and Nomad are complete", "pods", c.podCount(), "jobs", len(c.cache.UIDs()))
	for _, uid := range c.cache.UIDs() {
		c.queue.Add(uid)
	}
	wg.Go(func() { c.policies.run(ctx) })
	if err := c.sweep(ctx); err != nil {
		c.Log.Warn("Variables of pods that are gone may be left", "error", err)
	}
	for range c.Workers {
		wg.Go(func() { c.work(ctx) })
	}
	<-ctx.Done()
	return nil
}

func (c *Controller) podCount() int {
	n := 0
	for _, inf := range c.informers {
		n += len(inf.GetStore().ListKeys())
	}
	return n
}

func (c *Controller) work(ctx context.Context) {
	for {
		uid, quit := c.queue.Get()
		if quit {
			return
		}
		pass, cancel := context.WithTimeout(ctx, passTimeout)
		again, err := c.reconcile(pass, uid)
		cancel()
		c.queue.Done(uid)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.Log.Warn("will try again", "pod", uid, "error", err)
			c.queue.AddRateLimited(uid)
		default:
			c.queue.Forget(uid)
			if again > 0 {
				c.queue.AddAfter(uid, again)
			}
		}
	}
}

// pod returns the pod as the API server last told it, nil when it is not on
// one of our nodes.
func (c *Controller) pod(uid types.UID) *corev1.Pod {
	for _, inf := range c.informers {
		if list, err := inf.GetIndexer().ByIndex(byUID, string(uid)); err == nil && len(list) > 0 {
			return list[0].(*corev1.Pod)
		}
	}
	return nil
}

// Find returns the pod of that name on the node and its allocation, for the
// kubelet's API; the allocation is empty until Nomad has placed the pod.
func (c *Controller) Find(node, namespace, name string) (*corev1.Pod, *api.Allocation, error) {
	for _, inf := range c.informers {
		x, ok, err := inf.GetStore().GetByKey(namespace + "/" + name)
		if err != nil || !ok || x.(*corev1.Pod).Spec.NodeName != node {
			continue
		}
		pod := x.(*corev1.Pod)
		entry, _ := c.cache.Get(pod.UID)
		return pod, primary(pod, entry), nil
	}
	return nil, nil, fmt.Errorf("pod %s/%s is not on node %s", namespace, name, node)
}

// Pods are the pods of a node.
func (c *Controller) Pods(node string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, inf := range c.informers {
		for _, x := range inf.GetStore().List() {
			if pod := x.(*corev1.Pod); pod.Spec.NodeName == node {
				out = append(out, pod)
			}
		}
	}
	return out
}
