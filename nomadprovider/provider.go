package nomadprovider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/election"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/accelerator"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/hostvolumes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/kubelet"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/pods"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/stats"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// workers is how many pods are worked on at once. Each takes at most one
// connection to Nomad, which allows 100 per client address
// (limits.http_max_conns_per_client), and streams need some too.
const workers = 32

// Provider is everything that runs in one process.
type Provider struct {
	Config  *config.Config
	Kube    kubernetes.Interface
	Nomad   *api.Client
	Cluster string // ID, part of every job's ID
	NodeIP  string
	Version string
	Log     hclog.Logger
}

// Run acts whenever it leads, until ctx ends or something is wrong that
// another try would not mend.
func (p *Provider) Run(ctx context.Context) error {
	le := p.Config.LeaderElection
	e := election.Election{Kube: p.Kube, Log: p.Log, Namespace: le.Namespace, Name: le.Name, LeaseDuration: le.LeaseDuration.Duration}
	if le.Disabled {
		return e.Alone(ctx, p.lead)
	}
	return e.Run(ctx, p.lead)
}

// lead runs one term of office. All state is made anew: what a former term
// knew may be out of date.
func (p *Provider) lead(ctx context.Context) error {
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: p.Kube.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "nomad-kubelet"})
	// Of pods it tells as the kubelet, whose events people and programs look for.
	podRecorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet"})

	clients := node.NewClients(p.Nomad, p.Log.Named("clients"), clock.RealClock{})
	region := p.region(clients)
	nodes := make([]*node.Node, len(p.Config.VirtualNodes))
	views := make([]pods.Node, len(nodes))
	for i, vn := range p.Config.VirtualNodes {
		nodes[i] = node.New(node.Options{
			Config: vn, Clients: clients, Kube: p.Kube, Region: region, NodeIP: p.NodeIP,
			Port: int32(p.Config.Kubelet.Port + i), Version: node.KubeletVersion(p.Version), Recorder: recorder,
			Log: p.Log.Named("node").With("node", vn.Name),
		})
		views[i] = view{nodes[i], clients}
	}
	exec := taskexec.New(p.Nomad)
	ctrl := pods.New(pods.Options{
		Kube: p.Kube, Nomad: p.Nomad, Exec: exec, Cluster: p.Cluster, Nodes: views, Recorder: podRecorder,
		Clock: clock.RealClock{}, Log: p.Log.Named("pods"), OrphanGuard: p.Config.OrphanGuard.Duration, Workers: workers,
		ProbeAgent: node.ProbeAgent(),
	})

	source := stats.NewSource(p.Nomad, exec)
	vms := accelerator.Finder{Nomad: p.Nomad, Clients: clients, Log: p.Log.Named("accelerator")}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { clients.Run(ctx); return nil })
	changed, stop := clients.Subscribe()
	defer stop()
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
				ctrl.ClientsChanged()
			}
		}
	})
	for i, n := range nodes {
		vn := p.Config.VirtualNodes[i]
		used := stats.New(stats.Options{
			Node: vn.Name, Namespace: vn.Namespace, Pods: func() []stats.Pod { return podsOf(ctrl, vn) },
			Clients: func() []stats.Client { return clientsOf(clients, n) }, Source: source, Clock: clock.RealClock{},
			Log: p.Log.Named("stats"),
		})
		server, err := kubelet.New(kubelet.Options{
			Node: vn.Name, Config: p.Config.Kubelet, NodeIP: p.NodeIP, Port: p.Config.Kubelet.Port + i,
			Kube: p.Kube, Nomad: p.Nomad, Exec: exec, Namespace: vn.Namespace, Pods: finder{ctrl, vn.Name},
			List: func() []*corev1.Pod { return ctrl.Pods(vn.Name) }, Runtimes: vn.Runtimes,
			PodNetwork: vn.Network == translate.NetworkNetbridge,
			Stats:      used,
			Metrics:    kubelet.Metrics{Resource: used.Resource(), CAdvisor: used.CAdvisor(), Probes: ctrl.ProbeMetrics(vn.Name)},
			Log:        p.Log.Named("kubelet"),
		})
		if err != nil {
			return err
		}
		if runsVMs(vn) {
			vms.For = append(vms.For, accelerator.For{Namespace: vn.Namespace, Counts: n.Counts})
		}
		g.Go(func() error { return n.Run(ctx) })
		g.Go(func() error { return server.Run(ctx) })
	}
	g.Go(func() error { return ctrl.Run(ctx) })
	g.Go(func() error { vms.Run(ctx); return nil })
	if !p.Config.Volumes.NoProvisioning {
		g.Go(func() error {
			hostvolumes.Run(ctx, hostvolumes.Options{Kube: p.Kube, Nomad: p.Nomad, Nodes: volumeNodes(clients, nodes, p.Config), Log: p.Log.Named("volumes")})
			return nil
		})
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// region is the configured one, or what Nomad says; empty lets the agent that
// is asked decide.
func (p *Provider) region(clients *node.Clients) string {
	if p.Config.Nomad.Region != "" {
		return p.Config.Nomad.Region
	}
	region, err := clients.Region()
	if err != nil {
		p.Log.Warn("Nomad does not tell its region", "error", err)
	}
	return region
}

// runsVMs tells whether a virtual node has a runtime whose accelerator is to be
// found out.
func runsVMs(vn config.VirtualNode) bool {
	for _, r := range vn.Runtimes {
		if _, given := r.Config["accelerator"]; r.Driver == "qemu" && !given {
			return true
		}
	}
	return false
}

// view shows a virtual node to the pods room.
type view struct {
	*node.Node
	clients *node.Clients
}

// HostIP is the address of a Nomad client.
func (v view) HostIP(id string) string {
	c, _ := v.clients.Client(id)
	return c.HostIP
}

// HostVolume is where the node's clients have a host volume.
func (v view) HostVolume(name string) (paths []string) {
	for _, c := range v.clients.List() {
		if path, ok := c.HostVolumes[name]; ok && v.Has(c) {
			paths = append(paths, path)
		}
	}
	return paths
}

// volumeNodes shows the virtual nodes to the provisioner of volumes.
func volumeNodes(clients *node.Clients, nodes []*node.Node, cfg *config.Config) []hostvolumes.Node {
	out := make([]hostvolumes.Node, len(nodes))
	for i, n := range nodes {
		out[i] = hostvolumes.Node{Name: n.Name(), Namespace: cfg.VirtualNodes[i].Namespace, Clients: func() (list []hostvolumes.Client) {
			for _, c := range clients.List() {
				if n.Counts(c) {
					list = append(list, hostvolumes.Client{ID: c.ID, Name: c.Name, Plugins: c.VolumePlugins, Volumes: len(c.HostVolumes)})
				}
			}
			return list
		}}
	}
	return out
}

// finder shows the pods of one virtual node to its kubelet API.
type finder struct {
	ctrl *pods.Controller
	node string
}

// Find implements [kubelet.Pods].
func (f finder) Find(namespace, name string) (*corev1.Pod, *api.Allocation, error) {
	return f.ctrl.Find(f.node, namespace, name)
}

// podsOf shows the pods of a virtual node and their running containers to its
// statistics.
func podsOf(ctrl *pods.Controller, vn config.VirtualNode) []stats.Pod {
	var out []stats.Pod
	for _, pod := range ctrl.Pods(vn.Name) {
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		class := ""
		if pod.Spec.RuntimeClassName != nil {
			class = *pod.Spec.RuntimeClassName
		}
		p := stats.Pod{
			Object: pod, Driver: vn.Runtimes[class].Driver,
			HostNetwork: pod.Spec.HostNetwork || vn.Network == translate.NetworkHost,
		}
		for _, r := range ctrl.Runs(pod) {
			p.Containers = append(p.Containers, stats.Container{
				Name: r.Container, AllocID: r.Alloc.ID, Client: r.Alloc.NodeID, StartedAt: r.StartedAt,
			})
		}
		out = append(out, p)
	}
	return out
}

// clientsOf shows the Nomad clients that answer.
func clientsOf(clients *node.Clients, n *node.Node) []stats.Client {
	var out []stats.Client
	for _, c := range clients.List() {
		if c.Status == api.NodeStatusReady {
			out = append(out, stats.Client{ID: c.ID, DockerProxy: c.DockerProxy, Counted: n.Counts(c)})
		}
	}
	return out
}

// ClusterID is the short stable ID of a Kubernetes cluster: the beginning of
// the UID of its kube-system namespace, which no other cluster and no cluster
// set up anew at the same address shares.
func ClusterID(ctx context.Context, kube kubernetes.Interface, log hclog.Logger) (string, error) {
	const patience, pause = time.Minute, 3 * time.Second
	deadline := time.Now().Add(patience)
	for {
		id, err := clusterID(ctx, kube)
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return id, err
		}
		log.Warn("the API server does not answer yet", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func clusterID(ctx context.Context, kube kubernetes.Interface) (string, error) {
	ns, err := kube.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read namespace kube-system, whose UID identifies the cluster (or set cluster in the configuration): %w", err)
	}
	return string(ns.UID)[:8], nil
}
