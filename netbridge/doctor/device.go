package doctor

import (
	"fmt"
	"slices"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// calicoPort is where Calico takes VXLAN packets, from its own nodes only.
const calicoPort = 4789

// judgeDevices looks whether somebody else has what the agent makes.
func judgeDevices(s fabric.Settings, n node, c *agent.Config, h host) []report.Check {
	r := report.Report{Checks: []report.Check{judgeDevice(s, n, c.Device, h)}}
	if n.kind == fabric.KindNomad {
		r.Add(judgeBridge(s, c, h))
	}
	r.Add(judgePort(s, c.Device, h))
	return r.Checks
}

// mine says whether the overlay's device is there and this node's.
func mine(s fabric.Settings, n node, name string, h host) bool {
	l, there := h.link(name)
	// WireGuard's have no hardware address.
	return there && l.kind == s.Backend && (s.Backend != fabric.BackendVXLAN || l.mac == n.id.MAC().String())
}

func judgeDevice(s fabric.Settings, n node, name string, h host) report.Check {
	check := report.Check{Where: atMachine, What: "device " + name, Result: report.OK, Found: "free"}
	l, there := h.link(name)
	switch {
	case !there:
		return check
	case mine(s, n, name, h):
		check.Found = "the agent's"
		return check
	case l.kind == fabric.BackendVXLAN:
		check.Found = fmt.Sprintf("a VXLAN device of somebody else's (VNI %d, port %d, %s)", l.vni, l.port, l.mac)
	default:
		check.Found = "a " + l.kind + " of somebody else's"
	}
	check.Result, check.Breaks = report.Fail, "there is no overlay, or that device is lost"
	check.Remedy = "device: another name, in the agent's configuration; or ip link del " + name
	return check
}

// judgeBridge: the agent takes from its bridge all addresses that are not its own.
func judgeBridge(s fabric.Settings, c *agent.Config, h host) report.Check {
	check := report.Check{Where: atMachine, What: "bridge " + c.CNI.Bridge, Result: report.OK, Found: "free"}
	l, there := h.link(c.CNI.Bridge)
	if !there {
		return check
	}
	check.Found = "the agent's"
	check.Breaks, check.Remedy = "pods have no network", "cni.bridge: another name, in the agent's configuration"
	if l.kind != "bridge" {
		check.Result, check.Found = report.Fail, "a "+l.kind+" of somebody else's"
		return check
	}
	for _, a := range l.addrs {
		if !s.BurstCIDR.Contains(a.Addr()) && a.Addr() != c.DNS.Address {
			check.Result, check.Found = report.Fail, "a bridge of somebody else's, with the address "+a.String()
			check.Breaks = "the agent takes that address away from it"
			return check
		}
	}
	check.Breaks, check.Remedy = "", ""
	return check
}

func judgePort(s fabric.Settings, own string, h host) report.Check {
	check := report.Check{Where: atMachine, What: fmt.Sprintf("UDP port %d", s.Port), Result: report.OK, Found: "free"}
	const remedy = "port: another one, in the fabric's settings, for all nodes at once (netbridge fabric set)"
	mine := false
	for _, l := range h.links {
		if l.kind != s.Backend || l.name == own {
			mine = mine || l.name == own
			continue
		}
		if l.port == s.Port {
			check.Result, check.Found = report.Fail, fmt.Sprintf("%s has it, too (VNI %d)", l.name, l.vni)
			check.Breaks, check.Remedy = "the agent lets in nobody but its peers there: the other overlay stands still", remedy
			return check
		}
	}
	if mine {
		check.Found = "the agent's"
	}
	switch {
	case h.sockets[s.Port] && !mine:
		check.Result, check.Found = report.Fail, "a socket has it"
		check.Breaks, check.Remedy = "the overlay's device cannot be set up", remedy+"; who it is: ss -ulnp sport = "+fmt.Sprint(s.Port)
	case s.Port == calicoPort && slices.ContainsFunc(h.links, func(l link) bool { return calico(l.name) }):
		check.Result, check.Found = report.Fail, "Calico's"
		check.Breaks, check.Remedy = "Calico drops there what comes from others than its own nodes", remedy
	}
	return check
}
