package devcluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The components, in the order in which they start.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Docker            = "dockerd"
	DockerProxy       = "docker-proxy"
	Nomad             = "nomad"
	NomadClient       = "nomad-client"
	NomadKubelet      = "nomad-kubelet"
	Containerd        = "containerd"
	Kubelet           = "kubelet"
	MetricsServer     = "metrics-server"
	Consul            = "consul"
	Netbridge         = "netbridge"
	OnPremNetbridge   = "netbridge-on-prem"
	KubeProxy         = "kube-proxy"
	OnPremKubeProxy   = "kube-proxy-on-prem"
	CoreDNS           = "coredns"
)

// Cluster is a local hybrid, running or not.
type Cluster struct {
	// Ports are where the components listen.
	Ports Ports

	opts Options
	// dockerHost is the engine in use, as a URL.
	dockerHost string

	mu       sync.Mutex // guards children and opts.Out
	children map[string]*child
}

// state is what a later program has to know.
type state struct {
	Options    Options `json:"options"`
	DockerHost string  `json:"dockerHost,omitempty"`
}

func newCluster(opts Options) *Cluster {
	return &Cluster{opts: opts, Ports: portsFrom(opts.PortBase), children: map[string]*child{}}
}

// Open finds the cluster that an earlier program started in dir. The error is
// [os.ErrNotExist] if there is none.
func Open(dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("state of the cluster in %s: %w", dir, err)
	}
	s.Options.Dir = dir
	c := newCluster(s.Options)
	c.dockerHost = s.DockerHost
	return c, nil
}

func (c *Cluster) save() error {
	data, err := json.MarshalIndent(state{Options: c.opts, DockerHost: c.dockerHost}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.opts.Dir, "state.json"), data, 0o600)
}

// Dir is the state directory.
func (c *Cluster) Dir() string { return c.opts.Dir }

// ClusterID is part of the ID of every job in Nomad.
func (c *Cluster) ClusterID() string { return c.opts.ClusterID }

// KubeconfigFile is the administrator's.
func (c *Cluster) KubeconfigFile() string { return filepath.Join(c.opts.Dir, "kubeconfig") }

// ConfigFile is nomad-kubelet's configuration.
func (c *Cluster) ConfigFile() string { return filepath.Join(c.opts.Dir, "nomad-kubelet.yaml") }

// NomadAddress is where Nomad's HTTP API answers.
func (c *Cluster) NomadAddress() string {
	if c.opts.NomadAddress != "" {
		return c.opts.NomadAddress
	}
	return fmt.Sprintf("http://127.0.0.1:%d", c.Ports.NomadHTTP)
}

// DockerHost is the Docker engine in use, as a URL; empty when there is none.
func (c *Cluster) DockerHost() string { return c.dockerHost }

// ownKubernetes and ownNomad tell whether we start that side ourselves.
func (c *Cluster) ownKubernetes() bool { return c.opts.Kubeconfig == "" }
func (c *Cluster) ownNomad() bool      { return c.opts.NomadAddress == "" && !c.opts.NoNomad }

// Up starts what does not run yet and returns when all of it is ready. When it
// fails, what has started is left for inspection; [Cluster.Down] clears it.
func Up(ctx context.Context, opts Options) (*Cluster, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root: Nomad makes network namespaces and mounts for pods. Run it with sudo")
	}
	if opts.NomadAddress == "" || opts.OnPremNode {
		if err := Prerequisites(ctx, opts, false, io.Discard); err != nil {
			return nil, err
		}
	}
	c := newCluster(opts)
	if old, err := Open(opts.Dir); err == nil && old.anyRunning() {
		if old.opts.PortBase != opts.PortBase || old.opts.Kubeconfig != opts.Kubeconfig || old.opts.ACL != opts.ACL || old.opts.SplitNomad != opts.SplitNomad {
			return nil, fmt.Errorf("a cluster with other settings runs in %s: stop it first (nomad-kubelet dev down)", opts.Dir)
		}
		c.dockerHost = old.dockerHost
	}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	if err := c.checkPrograms(); err != nil {
		return nil, err
	}
	if err := c.checkPorts(ctx); err != nil {
		return nil, err
	}
	if opts.PodNetwork {
		if err := c.startRecord(ctx); err != nil {
			return c, err
		}
	}
	if opts.NoNomad {
		return c, c.startKubernetes(ctx)
	}
	if c.ownKubernetes() {
		if err := c.makePodBridge(ctx); err != nil {
			return c, err
		}
	}
	// The two sides know nothing of each other until nomad-kubelet joins them.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startKubernetes(gctx) })
	g.Go(func() error { return c.startNomadSide(gctx) })
	if err := g.Wait(); err != nil {
		return c, err
	}
	if opts.PodNetwork {
		if err := c.joinNomad(ctx); err != nil {
			return c, err
		}
	}
	if err := c.writeProviderConfig(); err != nil {
		return c, err
	}
	if c.opts.NoNomadKubelet {
		return c, nil
	}
	return c, c.Start(ctx, NomadKubelet)
}

func (c *Cluster) prepare() error {
	for _, dir := range []string{"run", "logs", "pki"} {
		if err := os.MkdirAll(filepath.Join(c.opts.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.opts.CacheDir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(c.opts.shortDir(), 0o755); err != nil {
		return err
	}
	return c.save()
}

// step runs one part of the start and tells how long it took.
func (c *Cluster) step(name string, f func() (string, error)) error {
	start := time.Now()
	detail, err := f()
	if err != nil {
		return err
	}
	c.say("  %-24s %-34s %5.1f s", name, detail, time.Since(start).Seconds())
	return nil
}

func (c *Cluster) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opts.Out != nil {
		fmt.Fprintf(c.opts.Out, format+"\n", args...)
	}
}

func (c *Cluster) startKubernetes(ctx context.Context) error {
	if !c.ownKubernetes() {
		if err := copyFile(c.opts.Kubeconfig, c.KubeconfigFile(), 0o600); err != nil {
			return err
		}
		return c.step("existing cluster", func() (string, error) { return "objects applied", c.applyObjects(ctx) })
	}
	if err := c.writeIdentities(); err != nil {
		return err
	}
	for _, name := range []string{Etcd, APIServer} {
		if err := c.Start(ctx, name); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Start(gctx, ControllerManager) })
	g.Go(func() error { return c.Start(gctx, Scheduler) })
	g.Go(func() error { return c.applyObjects(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	return c.startOnPremNode(ctx)
}

func (c *Cluster) startNomadSide(ctx context.Context) error {
	if !c.ownNomad() {
		return nil
	}
	if !c.opts.NoDocker {
		if err := c.startDocker(ctx); err != nil {
			return err
		}
		if c.proxied() {
			if err := c.Start(ctx, DockerProxy); err != nil {
				return err
			}
		}
		if err := c.prepareImages(ctx); err != nil {
			return err
		}
	}
	if c.opts.VMImage {
		if err := c.installVMImage(ctx); err != nil {
			return err
		}
	}
	if err := c.seedNomad(ctx); err != nil {
		return err
	}
	if err := c.startNomad(ctx); err != nil {
		return err
	}
	if c.opts.ACL {
		return c.step("Nomad ACL", func() (string, error) { return "policy and token", c.bootstrapACL(ctx) })
	}
	return nil
}

// component is how one of the processes is run and known to be ready.
type component struct {
	command func() (command, error)
	check   func(context.Context) error
	detail  string
}

func (c *Cluster) component(name string) (component, error) {
	local := func(scheme string, port int, path string) func(context.Context) error {
		return httpOK(fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, path))
	}
	if a, ok := c.agent(name); ok {
		return component{func() (command, error) { return c.agentCommand(a) }, c.agentReady(a), a.address()}, nil
	}
	switch name {
	case Etcd:
		return component{c.etcdCommand, local("http", c.Ports.Etcd, "/health"), fmt.Sprintf("127.0.0.1:%d", c.Ports.Etcd)}, nil
	case APIServer:
		return component{c.apiServerCommand, c.apiServerReady, c.apiServerURL()}, nil
	case ControllerManager:
		return component{c.controllerManagerCommand, c.controllersReady, ""}, nil
	case Scheduler:
		return component{c.schedulerCommand, local("https", c.Ports.Scheduler, "/readyz"), ""}, nil
	case Docker:
		return component{c.dockerdCommand, c.engine().ping, c.ownDockerHost()}, nil
	case DockerProxy:
		return component{c.dockerProxyCommand, newEngine(c.dockerProxyHost()).ping, c.dockerProxyHost()}, nil
	case NomadKubelet:
		return component{c.providerCommand, c.providerReady, ""}, nil
	case Containerd:
		return component{c.containerdCommand, c.containerdReady, c.containerdSocket()}, nil
	case Kubelet:
		return component{c.kubeletCommand, c.kubeletReady, c.onPremAddress().String()}, nil
	case MetricsServer:
		return component{c.metricsServerCommand, c.metricsServerReady, ""}, nil
	case Consul:
		return component{c.consulCommand, httpSays("http://"+c.consulAddress()+"/v1/status/leader", ":"), c.consulAddress()}, nil
	case Netbridge:
		return component{c.netbridgeCommand, c.netbridgeReady(name), ""}, nil
	case OnPremNetbridge:
		return component{c.onPremNetbridgeCommand, c.netbridgeReady(name), ""}, nil
	case KubeProxy:
		return component{func() (command, error) { return c.kubeProxyCommand(VirtualNode) }, c.kubeProxyReady(VirtualNode), ""}, nil
	case OnPremKubeProxy:
		return component{func() (command, error) { return c.kubeProxyCommand(OnPremNode) }, c.kubeProxyReady(OnPremNode), ""}, nil
	case CoreDNS:
		return component{c.coreDNSCommand, c.coreDNSReady, c.onPremAddress().String()}, nil
	}
	return component{}, fmt.Errorf("no component is called %q", name)
}

// Start starts a component unless it runs, and waits until it is ready.
func (c *Cluster) Start(ctx context.Context, name string) error {
	comp, err := c.component(name)
	if err != nil {
		return err
	}
	return c.step(name, func() (string, error) {
		var ch *child
		if c.pid(name) == 0 {
			cmd, err := comp.command()
			if err != nil {
				return "", err
			}
			if ch, err = c.spawn(name, cmd); err != nil {
				return "", err
			}
		}
		return comp.detail, c.ready(ctx, name, ch, comp.check)
	})
}

// find looks for a program in BinDir, beside our own executable and on PATH.
func (c *Cluster) find(name string) (string, error) {
	dirs := []string{c.opts.BinDir}
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self))
	}
	for _, dir := range dirs {
		if path := filepath.Join(dir, name); dir != "" && exists(path) {
			return filepath.Abs(path)
		}
	}
	if path := lookPath(name); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("%s is neither in %q nor on PATH: name its directory with --bin-dir, or build it (make bin/%s)", name, c.opts.BinDir, name)
}

// checkPrograms looks for all programs before the first one starts.
func (c *Cluster) checkPrograms() error {
	var errs []error
	for _, name := range c.started() {
		if name != Docker && name != DockerProxy && name != NomadClient && name != NomadKubelet {
			_, err := c.find(cmp.Or(programs[name], name))
			errs = append(errs, err)
		}
	}
	if c.opts.PodNetwork {
		_, err := c.find(netbridgeIPAM)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lookPath is [exec.LookPath] with the system directories added.
func lookPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range filepath.SplitList(searchPath()) {
		if path := filepath.Join(dir, name); dir != "" && exists(path) {
			return path
		}
	}
	return ""
}

var components = []string{
	Etcd, APIServer, ControllerManager, Scheduler, Consul, Docker, DockerProxy, Nomad, NomadClient, NomadKubelet, Containerd, Kubelet,
	OnPremNetbridge, OnPremKubeProxy, CoreDNS, Netbridge, KubeProxy, MetricsServer,
}

// programs are those of components that are not called like them.
var programs = map[string]string{OnPremNetbridge: "netbridge", OnPremKubeProxy: "kube-proxy"}

func (c *Cluster) anyRunning() bool {
	for _, name := range components {
		if c.Running(name) {
			return true
		}
	}
	return false
}
