package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// consul is what it says.
type consul struct {
	address, fabric string
	leader          string
	leaderErr       error
	settings        *fabric.Settings
	settingsErr     error
	list            registry.List
	listErr         error
	blocks          map[netip.Prefix]fabric.ID
	hosts           map[netip.Addr]fabric.ID
	ownersErr       error
	denied          []string
	writeErr        error
	// clients are the Nomad clients that register with its agent.
	clients []string
}

func (d *Doctor) lookConsul(ctx context.Context, reg *registry.Registry, n node) consul {
	c := consul{fabric: d.Config.Fabric, address: d.Config.Consul.Address}
	if c.address == "" {
		c.address = api.DefaultConfig().Address
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q := (&api.QueryOptions{}).WithContext(call)
	if c.leader, c.leaderErr = d.Consul.Status().LeaderWithQueryOptions(q); c.leaderErr != nil || c.leader == "" {
		return c
	}
	s, err := reg.Settings(ctx)
	if c.settingsErr = err; err == nil {
		c.settings = &s
	}
	c.list, c.listErr = reg.List(ctx, n.id)
	c.blocks, c.hosts, c.ownersErr = reg.Owners(ctx)
	if n.id != "" {
		c.denied, c.writeErr = reg.MayWrite(ctx, n.id)
	}
	// A token that may not read services is shown none.
	if services, err := d.Consul.Agent().ServicesWithFilterOpts("", q); err == nil {
		for id := range services {
			if strings.HasPrefix(id, nomadClient) {
				c.clients = append(c.clients, id)
			}
		}
	}
	slices.Sort(c.clients)
	return c
}

// nomadClient is how the services begin that Nomad clients register themselves as
// (command/agent/consul/service_client.go, makeAgentServiceID).
const nomadClient = "_nomad-client-"

func judgeConsul(c consul, n node) []report.Check {
	var r report.Report
	if c.leaderErr != nil || c.leader == "" {
		found := "has no leader"
		if c.leaderErr != nil {
			found = c.leaderErr.Error()
		}
		r.Add(report.Check{Where: atConsul, What: "leader", Result: report.Fail, Found: found,
			Breaks: "a node that has addresses goes on with the peers that it knows; a new one gets none",
			Remedy: "consul.address in the configuration, or CONSUL_HTTP_ADDR; consul operator raft list-peers"})
		return r.Checks
	}
	r.OK(atConsul, "leader", c.leader+" (by way of "+c.address+")")
	if unknownToken(c.settingsErr) {
		r.Add(report.Check{Where: atConsul, What: "token", Result: report.Fail, Found: "Consul does not know it", Breaks: rightsBreak,
			Remedy: tokenRemedy(c.fabric) + "\nthen write its SecretID into consul.tokenFile and start the agent again: it reads the file at its start"})
		return r.Checks
	}
	r.Add(judgeRights(c, n)...)
	switch {
	case c.settings != nil:
		r.OK(atConsul, "settings", fmt.Sprintf("fabric %q: burst %s, hosts %s, cluster %s, by %s", c.fabric, c.settings.BurstCIDR, c.settings.HostCIDR, some(c.settings.ClusterCIDRs), c.settings.Backend))
	case denied(c.settingsErr):
		// The rights tell of it.
	default:
		r.Add(report.Check{Where: atConsul, What: "settings", Result: report.Fail, Found: c.settingsErr.Error(), Breaks: "the agent waits for them",
			Remedy: "netbridge fabric set --fabric " + c.fabric + " -f fabric.yaml"})
	}
	if n.kind == fabric.KindNomad && len(c.clients) > 1 {
		r.Add(report.Check{Where: atConsul, What: "Nomad clients", Result: report.Warn, Found: fmt.Sprintf("%d register with the agent at %s", len(c.clients), c.address),
			Breaks: "each takes away the services of the other's jobs", Remedy: "run a Consul agent a Nomad client, and set its address in Nomad's consul block"})
	}
	return r.Checks
}

const rightsBreak = "a node that has addresses goes on with the peers that it knows, and takes nothing away; a new one gets none"

// tokenRemedy names the rights that the agents of this kind need.
func tokenRemedy(name string) string {
	remedy := "consul acl policy create -name netbridge-agent -rules @deploy/consul/netbridge-agent.hcl\nconsul acl token create -policy-name netbridge-agent"
	if name != "default" {
		remedy = fmt.Sprintf("sed -i 's,v1/default/,v1/%s/,' deploy/consul/netbridge-agent.hcl\n", name) + remedy
	}
	return remedy
}

func judgeRights(c consul, n node) []report.Check {
	var r report.Report
	fail := func(what, found string) {
		r.Add(report.Check{Where: atConsul, What: what, Result: report.Fail, Found: found, Breaks: rightsBreak, Remedy: tokenRemedy(c.fabric)})
	}
	prefix := "netbridge/v1/" + c.fabric + "/"
	var cut []string
	for _, e := range []error{c.settingsErr, c.listErr, c.ownersErr} {
		if e != nil && (denied(e) || strings.Contains(e.Error(), "may not read")) {
			cut = append(cut, e.Error())
		}
	}
	if e := c.list.Incomplete; e != nil && strings.Contains(e.Error(), "may not read") {
		cut = append(cut, e.Error())
	}
	if len(cut) > 0 {
		fail("token reads", "not all of "+prefix+": "+cut[0])
	} else {
		r.OK(atConsul, "token reads", "all of "+prefix)
	}
	switch {
	case n.id == "":
	case c.writeErr != nil:
		fail("token writes", c.writeErr.Error())
	case len(c.denied) > 0:
		fail("token writes", "it may not write "+strings.Join(c.denied, ", "))
	default:
		r.OK(atConsul, "token writes", "the node's record and claims")
	}
	return r.Checks
}

// unknownToken tells Consul's answers to a token that is gone from those to one with
// too few rights: both are 403.
func unknownToken(err error) bool {
	var s api.StatusError
	return errors.As(err, &s) && s.Code == 403 && strings.Contains(s.Body, "ACL not found")
}

func denied(err error) bool {
	var s api.StatusError
	return errors.As(err, &s) && s.Code == 403
}
