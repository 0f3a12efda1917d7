package doctor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// judgeRecords looks at who has what in Consul. Without a list nothing can be said.
func judgeRecords(c consul, n node) []report.Check {
	if c.settings == nil || c.listErr != nil || n.id == "" {
		return nil
	}
	var r report.Report
	r.Add(judgeList(c, n)...)
	r.Add(judgeOwn(c, n))
	var followed map[fabric.ID]fabric.Node
	if n.last != nil {
		followed = n.last.Peers
	}
	_, refused := c.settings.Accept(c.list.Nodes, followed)
	for _, id := range slices.Sorted(maps.Keys(refused)) {
		if id == n.id {
			r.Add(report.Check{Where: atFabric, What: "own record", Result: report.Fail, Found: refused[id].Error(), Breaks: "the others do not follow this node: its pods are not reached",
				Remedy: "netbridge status here and on whoever else has it; the settings: netbridge fabric show --fabric " + c.fabric})
			continue
		}
		r.Add(report.Check{Where: atFabric, What: "record of " + string(id), Result: report.Warn, Found: refused[id].Error(), Breaks: "its pods are not reached",
			Remedy: "look into its agent; if the machine is gone: consul kv delete netbridge/v1/" + c.fabric + "/nodes/" + string(id)})
	}
	return r.Checks
}

func judgeList(c consul, n node) []report.Check {
	const what = "list of nodes"
	e := c.list.Incomplete
	switch {
	case e == nil:
		return []report.Check{{Where: atFabric, What: what, Result: report.OK, Found: fmt.Sprintf("%d nodes", len(c.list.Nodes))}}
	case errors.Is(e, registry.ErrNoRecord) && n.last == nil:
		return []report.Check{{Where: atFabric, What: what, Result: report.OK, Found: fmt.Sprintf("%d nodes; this one joins when its agent starts", len(c.list.Nodes))}}
	case strings.Contains(e.Error(), "may not read"):
		return nil // told with the token's rights
	}
	return []report.Check{{Where: atFabric, What: what, Result: report.Fail, Found: e.Error(), Breaks: "nodes that are gone are followed on; nothing else, as long as agents run",
		Remedy: "this node's record comes back when its agent runs; all else: netbridge fabric set --fabric " + c.fabric + " -f fabric.yaml"}}
}

// judgeOwn compares what the node had with whose it is.
func judgeOwn(c consul, n node) report.Check {
	check := report.Check{Where: atFabric, What: "own claims", Result: report.OK, Found: "none yet"}
	var own fabric.Node
	if n.last != nil {
		own = n.last.Own
	}
	if c.ownersErr != nil || !own.Host.IsValid() {
		if c.ownersErr != nil {
			check.Result, check.Found, check.Remedy = report.Unknown, c.ownersErr.Error(), "consul kv get -recurse netbridge/v1/"+c.fabric+"/blocks/"
		}
		return check
	}
	var lost []string
	for _, b := range own.CIDRs {
		if o := c.blocks[b]; o != "" && o != n.id {
			lost = append(lost, fmt.Sprintf("block %s is %s's", b, o))
		}
	}
	if o := c.hosts[own.Host]; o != "" && o != n.id {
		lost = append(lost, fmt.Sprintf("overlay address %s is %s's", own.Host, o))
	}
	check.Found = own.Host.String() + " and " + some(own.CIDRs)
	if len(lost) > 0 {
		check.Result, check.Found = report.Fail, strings.Join(lost, "; ")
		check.Breaks = "this node gives no more addresses; its pods go on"
		check.Remedy = "give the key its owner back (consul kv get -recurse netbridge/v1/" + c.fabric + "/), or stop this node's pods and remove stateDir"
	}
	return check
}
