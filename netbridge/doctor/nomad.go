package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// nomad is what the client's agent tells; the zero value is a client that is not
// asked.
type nomad struct {
	asked     bool
	address   string
	err       error
	id        string
	configDir string
	// missing are plugins that are in none of paths.
	paths, missing []string
	// nodeErr is what came of reading the node.
	nodeErr  error
	knows    bool
	meta     string
	metaErr  error
	conflist bool
}

func (d *Doctor) lookNomad(ctx context.Context) nomad {
	if d.Nomad == nil {
		return nomad{}
	}
	n := nomad{asked: true, address: d.Nomad.Address()}
	file := filepath.Join(d.Config.CNI.ConfigDir, cniconf.Network+".conflist")
	if _, err := os.Stat(file); err == nil {
		n.conflist = true
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := (&nomadapi.QueryOptions{}).WithContext(ctx)
	var self nomadapi.AgentSelf
	if _, err := d.Nomad.Raw().Query("/v1/agent/self", &self, q); err != nil {
		n.err = err
		return n
	}
	n.id = self.Stats["client"]["node_id"]
	client, _ := self.Config["Client"].(map[string]any)
	n.configDir, _ = client["CNIConfigDir"].(string)
	path, _ := client["CNIPath"].(string)
	n.paths = filepath.SplitList(path)
	if len(n.paths) > 0 {
		n.missing = absent(n.paths, wanted(d.Config.CNI.HostPorts))
	}
	if n.id == "" {
		return n
	}
	node, _, err := d.Nomad.Nodes().Info(n.id, q)
	if n.nodeErr = err; err != nil {
		return n
	}
	n.knows, n.meta = joins(node), node.Meta[agent.MetaKey]
	// No key at all: the right is looked at first, and nothing is written
	// (client/meta_endpoint.go, Apply; nomad/structs, NodeMetaApplyRequest.Validate).
	_, n.metaErr = d.Nomad.Nodes().Meta().Apply(&nomadapi.NodeMetaApplyRequest{NodeID: n.id}, q)
	return n
}

func joins(n *nomadapi.Node) bool {
	return n.NodeResources != nil && slices.ContainsFunc(n.NodeResources.Networks, func(r *nomadapi.NetworkResource) bool {
		return r.Mode == "cni/"+cniconf.Network
	})
}

// wanted are the plugins that the network names (cniconf).
func wanted(hostPorts bool) []string {
	out := []string{"bridge", "loopback", ipam.Plugin}
	if hostPorts {
		out = append(out, "portmap")
	}
	return out
}

func absent(paths, names []string) (out []string) {
	for _, n := range names {
		if !slices.ContainsFunc(paths, func(p string) bool {
			st, err := os.Stat(filepath.Join(p, n))
			return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
		}) {
			out = append(out, n)
		}
	}
	return out
}

const nomadPolicy = "nomad acl policy apply netbridge-agent deploy/nomad/netbridge-agent.hcl\nand its token into nomad.tokenFile"

func judgeNomad(n nomad, c *agent.Config, running bool) []report.Check {
	if !n.asked {
		return nil
	}
	var r report.Report
	switch {
	case n.err != nil && forbidden(n.err):
		r.Add(report.Check{Where: atNomad, What: "agent", Result: report.Fail, Found: n.err.Error(), Breaks: "the agent does not learn the node's ID, and no pod is placed here", Remedy: nomadPolicy})
		return r.Checks
	case n.err != nil:
		r.Add(report.Check{Where: atNomad, What: "agent", Result: report.Fail, Found: n.err.Error(), Breaks: "a new client waits for it; no address that was lost is freed",
			Remedy: "nomad.address in the configuration: the client's own agent, not a server's"})
		return r.Checks
	case n.id == "":
		r.Add(report.Check{Where: atNomad, What: "agent", Result: report.Fail, Found: "the agent at " + n.address + " is no client", Breaks: "no pod is placed here", Remedy: "nomad.address: the client's own agent"})
		return r.Checks
	case c.Node.ID != "" && c.Node.ID != n.id:
		r.Add(report.Check{Where: atNomad, What: "agent", Result: report.Fail, Found: "the client is " + n.id + ", node.id says " + c.Node.ID,
			Breaks: "no pod is placed here, and all addresses are taken for lost", Remedy: "leave node.id away"})
	default:
		r.OK(atNomad, "agent", "client "+n.id+" at "+n.address)
	}
	r.Add(judgePlugins(n, c)...)
	r.Add(judgeNode(n, running)...)
	return r.Checks
}

func forbidden(err error) bool {
	var u nomadapi.UnexpectedResponseError
	return errors.As(err, &u) && u.StatusCode() == 403 || strings.Contains(err.Error(), "Permission denied")
}

func judgePlugins(n nomad, c *agent.Config) []report.Check {
	var r report.Report
	if n.configDir != "" && filepath.Clean(n.configDir) != filepath.Clean(c.CNI.ConfigDir) {
		r.Add(report.Check{Where: atNomad, What: "cni_config_dir", Result: report.Fail, Found: n.configDir + ", and the agent writes into " + c.CNI.ConfigDir,
			Breaks: "the client never knows the network", Remedy: "cni.configDir: " + n.configDir + ", in the agent's configuration"})
	}
	switch {
	case len(n.paths) == 0:
		r.Add(report.Check{Where: atNomad, What: "CNI plugins", Result: report.Unknown, Found: "the agent does not tell its cni_path", Breaks: "no pod gets an address without netbridge-ipam there",
			Remedy: "ls /opt/cni/bin"})
	case len(n.missing) > 0:
		r.Add(report.Check{Where: atNomad, What: "CNI plugins", Result: report.Fail, Found: "missing in " + strings.Join(n.paths, ", ") + ": " + strings.Join(n.missing, ", "),
			Breaks: "no pod gets an address", Remedy: "install -m 755 netbridge-ipam " + n.paths[0] + "/; the others: apt-get install containernetworking-plugins, and client { cni_path = \"" + n.paths[0] + ":/usr/lib/cni\" }"})
	default:
		r.OK(atNomad, "CNI plugins", "all in "+strings.Join(n.paths, ", "))
	}
	return r.Checks
}

func judgeNode(n nomad, running bool) []report.Check {
	var r report.Report
	if n.nodeErr != nil {
		r.Add(report.Check{Where: atNomad, What: "network cni/netbridge", Result: report.Unknown, Found: n.nodeErr.Error(), Breaks: "jobs wait for a client that knows it", Remedy: nomadPolicy})
		return r.Checks
	}
	if n.metaErr != nil && forbidden(n.metaErr) {
		r.Add(report.Check{Where: atNomad, What: "token writes", Result: report.Fail, Found: "it may not write the node's metadata", Breaks: "no pod is placed here", Remedy: nomadPolicy})
	}
	switch {
	case n.knows:
		r.OK(atNomad, "network cni/netbridge", "known to the client")
		r.Add(judgeMeta(n, running))
	case n.conflist:
		r.Add(report.Check{Where: atNomad, What: "network cni/netbridge", Result: report.Fail, Found: "its file is there, and the client does not know it", Breaks: "no pod is placed here",
			Remedy: "systemctl reload nomad, which is one SIGHUP"})
	default:
		r.Add(report.Check{Where: atNomad, What: "network cni/netbridge", Result: report.Warn, Found: "not written yet", Breaks: "no pod is placed here until then",
			Remedy: "start netbridge agent, and then send Nomad one SIGHUP"})
	}
	return r.Checks
}

// judgeMeta is of a client that knows the network, without which it is not ready.
func judgeMeta(n nomad, running bool) report.Check {
	check := report.Check{Where: atNomad, What: "meta." + agent.MetaKey, Result: report.OK, Found: n.meta}
	switch {
	case n.meta == agent.MetaReady:
	case running:
		check.Result, check.Breaks, check.Remedy = report.Fail, "no pod is placed here", "netbridge status; the agent's log"
	default:
		check.Result, check.Breaks, check.Remedy = report.Warn, "no pod is placed here until its agent runs", "start netbridge agent"
	}
	if n.meta == "" {
		check.Found = "not set"
	}
	return check
}
