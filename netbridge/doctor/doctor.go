package doctor

import (
	"context"
	"net/netip"
	"path/filepath"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	// callTimeout bounds every call to Consul or Nomad.
	callTimeout = 5 * time.Second
	peersFile   = "peers.json" // the agent's, in its stateDir
)

// Where a check belongs to.
const (
	atMachine = "machine"
	atConsul  = "consul"
	atFabric  = "fabric"
	atCluster = "cluster network"
	atNomad   = "nomad"
	atPeers   = "peers"
	atAgent   = "agent"
)

// Doctor holds what the checks need.
type Doctor struct {
	Config *agent.Config
	Consul *consulapi.Client
	// Nomad is nil on a Kubernetes node, and where the agent has none.
	Nomad *nomadapi.Client
	// Kube is asked for the Node called node.name; nil where there is none.
	Kube kubernetes.Interface
	// CNIDir is where a Kubernetes node's network plugins are set up, and FlannelEnv
	// what flannel leaves for its plugin.
	CNIDir, FlannelEnv string
}

// Default places of a Kubernetes node.
const (
	DefaultCNIDir     = "/etc/cni/net.d"
	DefaultFlannelEnv = "/run/flannel/subnet.env"
)

// node is who this machine is.
type node struct {
	// id is empty when nobody has told it yet.
	id       fabric.ID
	kind     string
	endpoint netip.Addr
	// last is what the agent has kept, nil if it never ran.
	last *peers.State
	// settings are Consul's, or those of the last time; nil if neither is known.
	settings *fabric.Settings
}

// Run makes all checks; those that depend on a failed one are left out.
func (d *Doctor) Run(ctx context.Context) *report.Report {
	r := &report.Report{}
	n := node{kind: d.Config.Node.Kind}
	h, err := lookHost()
	if err != nil {
		r.Add(report.Check{Where: atMachine, What: "devices and routes", Result: report.Fail, Found: err.Error(), Breaks: "everything", Remedy: "ip -4 route; ip link"})
		return r
	}
	var noEndpoint error
	n.endpoint, noEndpoint = agent.Endpoint(d.Config.Node.Endpoint)
	nomad := d.lookNomad(ctx)
	object := d.lookNode(ctx)
	n.id, n.last = d.who(nomad, object)
	if n.last != nil {
		n.settings = &n.last.Settings
	}
	reg := registry.New(d.Consul, d.Config.Fabric)
	c := d.lookConsul(ctx, reg, n)
	if c.settings != nil {
		n.settings = c.settings
	}
	st, err := agent.Ask(ctx, d.Config.Socket)
	running := err == nil
	made := n.settings != nil && mine(*n.settings, n, d.Config.Device, h)

	r.Add(judgeEndpoint(n.endpoint, noEndpoint, h, overhead(n.settings))...)
	m := lookMachine(d.Config.Device, n)
	r.Add(judgeMachine(m, made, n.kind)...)
	if n.settings != nil && d.Config.DNS.Address.IsValid() {
		r.Add(judgeServers(*n.settings, m.kubeProxy)...)
	}
	if n.settings != nil {
		r.Add(judgeDevices(*n.settings, n, d.Config, h)...)
	}
	r.Add(judgeConsul(c, n)...)
	if n.settings != nil {
		r.Add(judgeRanges(*n.settings, n, d.own(), h)...)
		r.Add(judgeRecords(c, n)...)
	}
	switch n.kind {
	case fabric.KindK8s:
		r.Add(judgeNodeObject(object, d.Config, n)...)
		ranges := d.Config.Node.PodCIDRs
		if len(ranges) == 0 {
			ranges = object.ranges
		}
		r.Add(judgeCluster(lookCluster(d.CNIDir, d.FlannelEnv), n.settings, ranges, h)...)
		r.Add(judgePodAddresses(ranges, h)...)
	case fabric.KindNomad:
		r.Add(judgeNomad(nomad, d.Config, running)...)
	}
	r.Add(judgeAgent(st, running, made)...)
	if made && n.settings != nil {
		r.Add(judgePaths(ask(ctx, d.peers(c, n)), *n.settings)...)
	}
	return r
}

// own are the devices that the agent makes.
func (d *Doctor) own() []string {
	if d.Config.Node.Kind == fabric.KindNomad {
		return []string{d.Config.Device, d.Config.CNI.Bridge}
	}
	return []string{d.Config.Device}
}

// who asks the configuration, then Nomad or the API server, then the agent's file.
func (d *Doctor) who(nm nomad, object nodeObject) (fabric.ID, *peers.State) {
	file := filepath.Join(d.Config.StateDir, peersFile)
	id := fabric.ID(d.Config.Node.Kind + "/" + d.Config.Node.ID)
	if d.Config.Node.ID == "" {
		id = peers.LastID(file)
		switch {
		case nm.id != "":
			id = fabric.ID(fabric.KindNomad + "/" + nm.id)
		case object.uid != "":
			id = fabric.ID(fabric.KindK8s + "/" + object.uid)
		}
	}
	if id == "" {
		return "", nil
	}
	last, err := peers.Load(file, d.Config.Fabric, id)
	if err != nil {
		return id, nil // another node's, or broken: the agent starts without it, too
	}
	return id, last
}

// peers are those that Consul tells of, or those of the last time.
func (d *Doctor) peers(c consul, n node) map[fabric.ID]fabric.Node {
	out := map[fabric.ID]fabric.Node{}
	if n.last != nil {
		out = n.last.Peers
	}
	if len(c.list.Nodes) > 0 {
		accepted, _ := n.settings.Accept(c.list.Nodes, out)
		out = accepted
	}
	delete(out, n.id)
	return out
}
