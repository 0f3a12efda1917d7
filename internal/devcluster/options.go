package devcluster

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

// DefaultPortBase is the first of the ports of a cluster; see [Ports].
const DefaultPortBase = 14640

// Options say what to start. The zero value, with a Dir, is the ordinary
// development cluster.
type Options struct {
	// Dir holds everything the cluster writes.
	Dir string `json:"dir"`
	// CacheDir keeps what makes the next start fast: images and the VM disk.
	// Empty: cache below Dir. Only one running cluster may use it.
	CacheDir string `json:"cacheDir,omitempty"`
	// BinDir is searched before PATH.
	BinDir string `json:"binDir,omitempty"`
	// PortBase is the first of 20 ports on loopback.
	PortBase int `json:"portBase,omitempty"`
	// ClusterID is part of the ID of every job in Nomad.
	ClusterID string `json:"clusterID,omitempty"`
	// BindAddress is what the API server listens on; 127.0.0.1 when empty.
	BindAddress string `json:"bindAddress,omitempty"`

	// Kubeconfig names an existing Kubernetes cluster to use instead of starting
	// a control plane.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// NomadAddress names an existing Nomad to use instead of starting one.
	NomadAddress string `json:"nomadAddress,omitempty"`
	// NomadTokenFile is the token for NomadAddress.
	NomadTokenFile string `json:"nomadTokenFile,omitempty"`

	// OwnDocker starts an engine of our own even if another one answers. Two
	// Nomad clients on one engine take each other's containers for strays, so
	// clusters that run side by side want this.
	OwnDocker bool `json:"ownDocker,omitempty"`
	// NoDocker starts no engine and prepares no images: for the mock driver.
	NoDocker bool `json:"noDocker,omitempty"`

	// NoNomad starts the Kubernetes side alone.
	NoNomad bool `json:"noNomad,omitempty"`
	// OnPremNode adds a real node: containerd and a kubelet.
	OnPremNode bool `json:"onPremNode,omitempty"`
	// PodNetwork has a real node, too, which is then a machine of its own (a network
	// namespace), and joins it and the Nomad client in one pod network: Consul,
	// netbridge's agents, kube-proxy on both sides, CoreDNS. The API server then
	// listens on all addresses. A machine can be in one pod network.
	PodNetwork bool `json:"podNetwork,omitempty"`

	// ACL switches Nomad's access control on; nomad-kubelet then gets a token
	// with deploy/nomad/policy.hcl and nothing else.
	ACL bool `json:"acl,omitempty"`
	// ServerHCL, ClientHCL and PolicyHCL replace the files of deploy/nomad.
	ServerHCL string `json:"serverHCL,omitempty"`
	ClientHCL string `json:"clientHCL,omitempty"`
	PolicyHCL string `json:"policyHCL,omitempty"`
	// SplitNomad runs Nomad's server and its client as two agents, as real
	// clusters have them: [Nomad] is then the server alone, [NomadClient] what runs
	// the pods.
	SplitNomad bool `json:"splitNomad,omitempty"`
	// ExtraNomadHCL is added to the configuration of every Nomad agent, last.
	ExtraNomadHCL string `json:"extraNomadHCL,omitempty"`

	// NomadKubelet is the program; empty: in BinDir, otherwise our own executable.
	NomadKubelet string `json:"nomadKubelet,omitempty"`
	// NoNomadKubelet leaves it to the caller to run one with [Cluster.ConfigFile].
	NoNomadKubelet bool `json:"noNomadKubelet,omitempty"`
	// Configure may change nomad-kubelet's configuration before it is written.
	Configure func(*config.Config) `json:"-"`

	// MockRuntime adds the RuntimeClass nomad-mock and its row in the driver
	// table: pods that Nomad only pretends to run.
	MockRuntime bool `json:"mockRuntime,omitempty"`
	// VMImage installs the demonstration's VM in [VMImageDir].
	VMImage bool `json:"vmImage,omitempty"`

	// Timeout bounds the wait for each component; a minute and a half when zero.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Out is told each step; nil is silence.
	Out io.Writer `json:"-"`
}

// Ports are where the components listen, on loopback.
type Ports struct {
	Etcd, EtcdPeer, APIServer, ControllerManager, Scheduler int
	NomadHTTP, NomadRPC, NomadSerf                          int
	// NomadClientHTTP is the client agent's; see [Options.SplitNomad].
	NomadClientHTTP int
	// Kubelet is the first virtual node's; the next seven are free for others.
	Kubelet int
	// KubeletHealth is the real kubelet's; see [Options.OnPremNode].
	KubeletHealth int
	// MetricsServer listens on the pods' bridge; see [Cluster.StartMetricsServer].
	MetricsServer int
}

func portsFrom(base int) Ports {
	return Ports{
		Etcd: base, EtcdPeer: base + 1, APIServer: base + 2, ControllerManager: base + 3, Scheduler: base + 4,
		NomadHTTP: base + 6, NomadRPC: base + 7, NomadSerf: base + 8,
		KubeletHealth: base + 9, NomadClientHTTP: base + 10, MetricsServer: base + 5, Kubelet: base + 12,
	}
}

var clusterIDForm = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("devcluster: Dir is not set")
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	if o.BinDir != "" {
		if o.BinDir, err = filepath.Abs(o.BinDir); err != nil {
			return err
		}
	}
	if o.CacheDir == "" {
		o.CacheDir = filepath.Join(o.Dir, "cache")
	}
	if o.PortBase == 0 {
		o.PortBase = DefaultPortBase
	}
	if o.PortBase < 1024 || o.PortBase > 32000 {
		return fmt.Errorf("port base %d: must be between 1024 and 32000", o.PortBase)
	}
	if o.ClusterID == "" {
		o.ClusterID = "dev"
		if o.PortBase != DefaultPortBase {
			o.ClusterID = fmt.Sprintf("dev%d", o.PortBase)
		}
	}
	if !clusterIDForm.MatchString(o.ClusterID) {
		return fmt.Errorf("cluster ID %q: must be 1 to 20 characters of a-z and 0-9", o.ClusterID)
	}
	if o.PodNetwork {
		if o.Kubeconfig != "" || o.NomadAddress != "" || o.NoNomad || o.NoDocker {
			return errors.New("a pod network needs a control plane, a Nomad and a Docker engine that are started here")
		}
		o.OnPremNode = true
		setDefault(&o.BindAddress, "0.0.0.0")
	}
	setDefault(&o.BindAddress, "127.0.0.1")
	setDefault(&o.ServerHCL, deploynomad.Server)
	setDefault(&o.ClientHCL, deploynomad.Client)
	setDefault(&o.PolicyHCL, deploynomad.Policy)
	setDefault(&o.Timeout, 90*time.Second)
	if o.Kubeconfig != "" {
		if o.Kubeconfig, err = filepath.Abs(o.Kubeconfig); err != nil {
			return err
		}
		if !exists(o.Kubeconfig) {
			return fmt.Errorf("kubeconfig %s: no such file", o.Kubeconfig)
		}
	}
	return nil
}

// shortDir is where sockets and Nomad's allocations lie. A path of a Unix socket
// has room for 107 characters, and those below an allocation are long, so a
// deep state directory gets a short stand-in.
func (o *Options) shortDir() string {
	if len(o.Dir) <= 32 {
		return o.Dir
	}
	h := fnv.New32a()
	h.Write([]byte(o.Dir))
	return fmt.Sprintf("/var/lib/nomad-kubelet-dev/%08x", h.Sum32())
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
