package devcluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

var components = []string{
	Etcd, APIServer, ControllerManager, Scheduler, Consul, Docker, DockerProxy, Nomad, NomadClient, NomadKubelet, Containerd, Kubelet,
	OnPremNetbridge, OnPremKubeProxy, CoreDNS, Netbridge, KubeProxy, MetricsServer,
}

// programs are those of components that are not called like them.
var programs = map[string]string{OnPremNetbridge: "netbridge", OnPremKubeProxy: "kube-proxy"}

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

func (c *Cluster) anyRunning() bool {
	for _, name := range components {
		if c.Running(name) {
			return true
		}
	}
	return false
}
