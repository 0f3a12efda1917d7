package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/hashicorp/consul/api"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// nodeNameEnv is what a DaemonSet sets to spec.nodeName.
const nodeNameEnv = "NODE_NAME"

// Config is the file given to netbridge agent --config.
type Config struct {
	// Fabric is the pod network's name, a part of every key in Consul.
	Fabric string `json:"fabric,omitempty"`
	Node   Node   `json:"node"`
	Consul Consul `json:"consul,omitempty"`
	Nomad  Nomad  `json:"nomad,omitempty"`
	// Kubernetes is asked for the Node called node.name.
	Kubernetes Kubernetes `json:"kubernetes,omitempty"`
	CNI        CNI        `json:"cni,omitempty"`
	DNS        DNS        `json:"dns,omitempty"`
	Watch      Watch      `json:"watch,omitempty"`
	// StateDir keeps the peers file and the address store over a restart of the
	// machine.
	StateDir string `json:"stateDir,omitempty"`
	// Socket is where netbridge status asks.
	Socket string `json:"socket,omitempty"`
	// MetricsAddress serves Prometheus metrics at /metrics; "none" for not at all.
	MetricsAddress string `json:"metricsAddress,omitempty"`
	// Device is the overlay's device.
	Device    string `json:"device,omitempty"`
	LogLevel  string `json:"logLevel,omitempty"`
	LogFormat string `json:"logFormat,omitempty"`
}

// Node is this machine.
type Node struct {
	// Kind is nomad or k8s.
	Kind string `json:"kind"`
	// ID is the Nomad client's node ID, or the Node's UID. Empty: asked of the Nomad
	// agent, or of the API server.
	ID string `json:"id,omitempty"`
	// Name is the Node's, whose UID and ranges the API server tells; empty: the
	// environment's NODE_NAME.
	Name string `json:"name,omitempty"`
	// Endpoint is the address in the underlay; empty: that of the default route.
	Endpoint string `json:"endpoint,omitempty"`
	// PodCIDRs are a Kubernetes node's own; empty: its spec.podCIDRs.
	PodCIDRs []netip.Prefix `json:"podCIDRs,omitempty"`
	// Blocks is how many a Nomad client claims, as far as there are any.
	Blocks int `json:"blocks,omitempty"`
}

// Watch says how the other nodes' records are followed.
type Watch struct {
	// Parts is 1, or 16: then a change brings a sixteenth of the records, and sixteen
	// queries for each kind of nodes wait at Consul in place of one.
	Parts int `json:"parts,omitempty"`
}

// Consul says how to reach it; what is empty comes from CONSUL_HTTP_ADDR and its
// other environment variables.
type Consul struct {
	Address string `json:"address,omitempty"`
	// TokenFile is read when the agent starts; a restart costs no packet.
	TokenFile string `json:"tokenFile,omitempty"`
	CAFile    string `json:"caFile,omitempty"`
	CertFile  string `json:"certFile,omitempty"`
	KeyFile   string `json:"keyFile,omitempty"`
}

// Nomad is asked which allocations this client has. What is empty comes from
// NOMAD_ADDR and its other environment variables.
type Nomad struct {
	// Disabled leaves lost addresses uncollected.
	Disabled  bool   `json:"disabled,omitempty"`
	Address   string `json:"address,omitempty"`
	TokenFile string `json:"tokenFile,omitempty"`
}

// Kubernetes says how to reach the API server.
type Kubernetes struct {
	// Kubeconfig is a file; empty: KUBECONFIG, then the pod's own account.
	Kubeconfig string `json:"kubeconfig,omitempty"`
}

// CNI is the network that allocations join.
type CNI struct {
	// ConfigDir is the Nomad client's cni_config_dir.
	ConfigDir string `json:"configDir,omitempty"`
	Bridge    string `json:"bridge,omitempty"`
	// HostPorts puts allocations' ports on the client's address, too.
	HostPorts bool `json:"hostPorts,omitempty"`
}

// DNS is the server of a Nomad client's pods. Which names are the cluster's is a
// setting of the fabric.
type DNS struct {
	// Address is what pods are given as their name server, the same on all clients,
	// such as 169.254.20.53: a link-local one is nobody else's. Empty: there is none.
	Address netip.Addr `json:"address,omitzero"`
	// ConsulDomain is answered by the server at ConsulAddress.
	ConsulDomain  string `json:"consulDomain,omitempty"`
	ConsulAddress string `json:"consulAddress,omitempty"`
	// Upstream, host:port, knows the rest; empty: the name servers of this machine's
	// /etc/resolv.conf.
	Upstream []string `json:"upstream,omitempty"`
}

// Load reads, completes and checks a file. Its errors name the key.
func Load(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := &Config{}
	err = DecodeStrict(data, c)
	if err == nil {
		c.Complete()
		err = c.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return c, nil
}

// DecodeStrict reads YAML or JSON as Kubernetes' own files are read: keys are
// case-sensitive, and an unknown one is an error.
func DecodeStrict(data []byte, into any) error {
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(raw, into)
	return errors.Join(append(strict, err)...)
}

// Complete fills in what was left empty.
func (c *Config) Complete() {
	def(&c.Fabric, "default")
	def(&c.StateDir, "/var/lib/netbridge")
	def(&c.Socket, "/run/netbridge/agent.sock")
	def(&c.MetricsAddress, "127.0.0.1:9477")
	def(&c.Device, "nb0")
	def(&c.Watch.Parts, 1)
	def(&c.LogLevel, "info")
	def(&c.LogFormat, "text")
	def(&c.DNS.ConsulDomain, "consul")
	def(&c.DNS.ConsulAddress, "127.0.0.1:8600")
	def(&c.CNI.Bridge, "nbr0")
	if c.Node.Kind == fabric.KindK8s && c.Node.ID == "" {
		def(&c.Node.Name, os.Getenv(nodeNameEnv))
	}
	if c.Node.Kind == fabric.KindNomad {
		def(&c.Node.Blocks, 1)
		def(&c.CNI.ConfigDir, "/opt/cni/config")
	}
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Validate names the key of what is wrong.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if strings.ContainsAny(c.Fabric, "/ ") {
		bad("fabric: %q must have no slash and no space", c.Fabric)
	}
	switch c.Node.Kind {
	case fabric.KindNomad:
		if len(c.Node.PodCIDRs) > 0 {
			bad("node.podCIDRs: a Nomad client claims its blocks, only a Kubernetes node has ranges of its own")
		}
		if c.Node.Name != "" {
			bad("node.name: a Nomad client's ID is asked of Nomad, only a Kubernetes node has a name")
		}
		if c.Node.Blocks < 1 {
			bad("node.blocks: %d is not at least 1", c.Node.Blocks)
		}
	case fabric.KindK8s:
		switch {
		case c.Node.ID == "" && c.Node.Name == "":
			bad("node.name: give the Node's name, or %s in the environment, or the Node's UID as node.id", nodeNameEnv)
		case c.Node.ID != "" && c.Node.Name != "":
			bad("node.id: the API server tells the UID of the Node called node.name: give one of the two")
		case c.Node.ID != "" && len(c.Node.PodCIDRs) == 0:
			bad("node.podCIDRs: with node.id nobody is asked for the ranges of its pods: give them, or node.name in place of the ID")
		}
		if c.Node.Blocks != 0 {
			bad("node.blocks: only a Nomad client claims blocks")
		}
	default:
		bad("node.kind: %q is neither nomad nor k8s", c.Node.Kind)
	}
	if c.Node.Endpoint != "" {
		if a, err := netip.ParseAddr(c.Node.Endpoint); err != nil || !a.Is4() {
			bad("node.endpoint: %q is no IPv4 address", c.Node.Endpoint)
		}
	}
	// IFNAMSIZ is 16 with the closing zero (linux/if.h).
	for key, name := range map[string]string{"device": c.Device, "cni.bridge": c.CNI.Bridge} {
		if len(name) > 15 || strings.ContainsAny(name, "/ ") {
			bad("%s: %q is no name of a device", key, name)
		}
	}
	if d := c.DNS; d.Address.IsValid() {
		switch {
		case !d.Address.Is4():
			bad("dns.address: %s is no IPv4 address", d.Address)
		case c.Node.Kind != fabric.KindNomad:
			bad("dns.address: a Kubernetes node's pods have the cluster's own DNS")
		}
	}
	for _, server := range append([]string{c.DNS.ConsulAddress}, c.DNS.Upstream...) {
		if _, err := netip.ParseAddrPort(server); err != nil {
			bad("dns: %q is no address with a port", server)
		}
	}
	if p := c.Watch.Parts; p != 1 && p != registry.Parts {
		bad("watch.parts: %d is neither 1 nor %d", p, registry.Parts)
	} else if id := c.Node.ID; p == registry.Parts && id != "" {
		// One that is asked for is a UUID.
		if err := registry.MayDivide(fabric.ID(c.Node.Kind + "/" + id)); err != nil {
			bad("watch.parts: %v", err)
		}
	}
	if c.MetricsAddress != "none" {
		if _, _, err := net.SplitHostPort(c.MetricsAddress); err != nil {
			bad("metricsAddress: %v", err)
		}
	}
	return errors.Join(errs...)
}

// Client connects to Consul. One a process: Consul allows 200 connections from
// one address.
func (c Consul) Client() (*api.Client, error) {
	cfg := api.DefaultConfig()
	if c.Address != "" {
		cfg.Address = c.Address
	}
	if c.TokenFile != "" {
		cfg.TokenFile = c.TokenFile
	}
	if c.CAFile != "" {
		cfg.TLSConfig.CAFile = c.CAFile
	}
	if c.CertFile != "" {
		cfg.TLSConfig.CertFile, cfg.TLSConfig.KeyFile = c.CertFile, c.KeyFile
	}
	client, err := api.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("consul at %s: %w", cfg.Address, err)
	}
	return client, nil
}
