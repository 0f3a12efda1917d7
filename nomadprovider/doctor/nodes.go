package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// poolClient is a Nomad client of a virtual node's pool.
type poolClient struct {
	node *api.Node
	vn   config.VirtualNode
}

func status(err error) int {
	var u api.UnexpectedResponseError
	if errors.As(err, &u) {
		return u.StatusCode()
	}
	return 0
}

// virtualNodes checks that what each of them stands for exists, and returns
// the clients to look at.
func (d *Doctor) virtualNodes(ctx context.Context, r *report.Report) []poolClient {
	var out []poolClient
	seen := map[string]bool{}
	for _, vn := range d.Config.VirtualNodes {
		where := "node " + vn.Name
		d.namespace(ctx, r, where, vn.Namespace)
		d.oversubscription(ctx, r, where, vn)
		clients, err := d.clients(ctx, vn)
		d.pool(ctx, r, where, vn, len(clients))
		if err != nil {
			r.Add(report.Check{Where: where, What: "clients", Result: report.Unknown, Found: err.Error(), Remedy: "nomad node status"})
			continue
		}
		d.placeable(r, where, vn, clients)
		companion(r, where, vn)
		d.volumePlugins(r, where, clients)
		for _, c := range clients {
			if !seen[c.ID] && c.Status != api.NodeStatusDown {
				seen[c.ID] = true
				out = append(out, poolClient{node: c, vn: vn})
			}
		}
	}
	return out
}

func (d *Doctor) namespace(ctx context.Context, r *report.Report, where, ns string) {
	q, stop := query(ctx, "")
	defer stop()
	_, _, err := d.Nomad.Namespaces().Info(ns, q)
	switch {
	case err == nil:
		r.OK(where, "namespace", ns)
	case status(err) == http.StatusNotFound:
		r.Add(report.Check{Where: where, What: "namespace", Result: report.Fail, Found: fmt.Sprintf("Nomad has no namespace %q", ns),
			Breaks: "every pod of this node", Remedy: "nomad namespace apply " + ns})
	default:
		r.Add(report.Check{Where: where, What: "namespace", Result: report.Unknown, Found: err.Error(), Remedy: "nomad namespace status " + ns})
	}
}

// pool takes a right of its own to read; its clients tell enough.
func (d *Doctor) pool(ctx context.Context, r *report.Report, where string, vn config.VirtualNode, clients int) {
	q, stop := query(ctx, "")
	defer stop()
	_, _, err := d.Nomad.NodePools().Info(vn.NodePool, q)
	switch {
	case err == nil || clients > 0:
		r.OK(where, "node pool", vn.NodePool)
	case status(err) == http.StatusNotFound:
		r.Add(report.Check{Where: where, What: "node pool", Result: report.Fail, Found: fmt.Sprintf("Nomad has no node pool %q", vn.NodePool),
			Breaks: "the node is NotReady and every pod of it is refused",
			Remedy: fmt.Sprintf("correct nodePool of virtual node %s, or: printf 'node_pool \"%s\" {}' | nomad node pool apply -", vn.Name, vn.NodePool)})
	default:
		r.Add(report.Check{Where: where, What: "node pool", Result: report.Unknown, Found: err.Error(), Remedy: "nomad node pool info " + vn.NodePool})
	}
}

func (d *Doctor) oversubscription(ctx context.Context, r *report.Report, where string, vn config.VirtualNode) {
	const what = "memory oversubscription"
	if vn.MemoryOversubscription != nil {
		r.OK(where, what, fmt.Sprintf("set to %t in the configuration", *vn.MemoryOversubscription))
		return
	}
	q, stop := query(ctx, "")
	defer stop()
	conf, _, err := d.Nomad.Operator().SchedulerGetConfiguration(q)
	switch {
	case err != nil:
		r.Add(report.Check{Where: where, What: what, Result: report.Unknown, Found: err.Error(), Breaks: "memory limits above requests are not used",
			Remedy: "nomad operator scheduler get-config\nand set memoryOversubscription of the virtual node"})
	case conf.SchedulerConfig == nil || !conf.SchedulerConfig.MemoryOversubscriptionEnabled:
		r.Add(report.Check{Where: where, What: what, Result: report.Warn, Found: "off",
			Breaks: "pods reserve their memory limit instead of their request, and a VM has no room for qemu's own memory",
			Remedy: "nomad operator scheduler set-config -memory-oversubscription=true"})
	default:
		r.OK(where, what, "on")
	}
}

// clients reads the details of the pool's clients.
func (d *Doctor) clients(ctx context.Context, vn config.VirtualNode) ([]*api.Node, error) {
	q, stop := query(ctx, "")
	defer stop()
	stubs, _, err := d.Nomad.Nodes().List(q)
	if err != nil {
		return nil, fmt.Errorf("list Nomad's clients: %w", err)
	}
	var out []*api.Node
	for _, s := range stubs {
		if vn.NodePool != api.NodePoolAll && s.NodePool != vn.NodePool || !inDatacenters(s.Datacenter, vn.Datacenters) {
			continue
		}
		q, stop := query(ctx, "")
		n, _, err := d.Nomad.Nodes().Info(s.ID, q)
		stop()
		if err != nil {
			return nil, fmt.Errorf("read Nomad client %s: %w", s.Name, err)
		}
		out = append(out, n)
	}
	return out, nil
}

func inDatacenters(dc string, patterns []string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, dc); ok && err == nil {
			return true
		}
	}
	return len(patterns) == 0
}

// placeable counts the clients that can take pods, and those that can take
// each runtime.
func (d *Doctor) placeable(r *report.Report, where string, vn config.VirtualNode, clients []*api.Node) {
	ready := 0
	healthy := map[string]int{}
	for _, c := range clients {
		if c.Status != api.NodeStatusReady || c.SchedulingEligibility != api.NodeSchedulingEligible {
			continue
		}
		ready++
		for name, info := range c.Drivers {
			if info.Detected && info.Healthy {
				healthy[name]++
			}
		}
	}
	if ready == 0 {
		r.Add(report.Check{Where: where, What: "clients", Result: report.Fail, Found: fmt.Sprintf("%d in the pool, none ready and eligible", len(clients)),
			Breaks: "the node is NotReady, and no pod is scheduled to it",
			Remedy: fmt.Sprintf("set node_pool = %q in the client block of a Nomad client; nomad node eligibility -enable ID", vn.NodePool)})
		return
	}
	r.OK(where, "clients", fmt.Sprintf("%d of %d ready and eligible", ready, len(clients)))
	for class, rt := range vn.Runtimes {
		if healthy[rt.Driver] > 0 {
			continue
		}
		res, pods := report.Warn, "pods with runtimeClassName "+class
		if class == "" {
			res, pods = report.Fail, "pods"
		}
		r.Add(report.Check{Where: where, What: "driver " + rt.Driver, Result: res, Found: "not healthy on any ready client",
			Breaks: pods + " stay Pending", Remedy: driverRemedy(rt.Driver)})
	}
}

func driverRemedy(driver string) string {
	switch driver {
	case "docker":
		return "install and start Docker on the clients (apt-get install docker.io), then restart Nomad"
	case "qemu":
		return "install qemu on the clients (apt-get install qemu-system-x86), then restart Nomad"
	}
	return "nomad node status -verbose ID"
}

// companion cannot be looked for: only the clients reach its registry.
func companion(r *report.Report, where string, vn config.VirtualNode) {
	if vn.CompanionImage != "" {
		r.OK(where, "companion image", vn.CompanionImage)
		return
	}
	r.Add(report.Check{Where: where, What: "companion image", Result: report.Warn, Found: "none",
		Breaks: "HTTP, TCP and gRPC probes and HTTP hooks are not run; files of volumes change one by one, and keys neither come nor go",
		Remedy: "make image, push nomad-kubelet/companion where the clients can pull it, and set virtualNodes[].companionImage"})
}

// networked tells whether pods of a virtual node need CNI plugins.
func networked(vn config.VirtualNode) bool { return vn.Network != translate.NetworkHost }
