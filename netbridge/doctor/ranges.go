package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/vxlan"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/wireguard"
)

// minMTU is the overlay's least (fabric, Allowed).
const minMTU = 1280

func judgeEndpoint(endpoint netip.Addr, err error, h host, overhead int) []report.Check {
	const what = "endpoint"
	if err != nil {
		return []report.Check{{Where: atMachine, What: what, Result: report.Fail, Found: err.Error(), Breaks: "the agent does not start",
			Remedy: "node.endpoint: the address from which peers see this machine's packets come"}}
	}
	l, ok := h.with(endpoint)
	if !ok {
		return []report.Check{{Where: atMachine, What: what, Result: report.Fail, Found: fmt.Sprintf("no device has %s", endpoint), Breaks: "there is no overlay",
			Remedy: "node.endpoint: an address of this machine (ip -4 addr)"}}
	}
	mtu := report.Check{Where: atMachine, What: "underlay MTU", Result: report.OK, Found: fmt.Sprintf("%d, which leaves %d for pods", l.mtu, l.mtu-overhead)}
	if l.mtu-overhead < minMTU {
		mtu.Result, mtu.Found = report.Fail, fmt.Sprintf("%d on %s", l.mtu, l.name)
		mtu.Breaks = fmt.Sprintf("the overlay takes %d bytes of it and needs %d: nobody follows this node", overhead, minMTU)
		mtu.Remedy = fmt.Sprintf("ip link set %s mtu 1500, if what is behind it carries that; otherwise node.endpoint on a device that has at least %d", l.name, minMTU+overhead)
	}
	return []report.Check{{Where: atMachine, What: what, Result: report.OK, Found: fmt.Sprintf("%s on %s", endpoint, l.name)}, mtu}
}

// overhead is what the fabric's backend adds to a packet, in bytes; the usual one's
// while nobody knows the settings.
func overhead(s *fabric.Settings) int {
	if s != nil && s.Backend == fabric.BackendWireGuard {
		return wireguard.Overhead
	}
	return vxlan.Overhead
}

// rangeOf is one of the fabric's.
type rangeOf struct {
	key string
	p   netip.Prefix
}

// judgeRanges compares the fabric's ranges with what the machine reaches otherwise.
// A Kubernetes node reaches the cluster's pods by its own network.
func judgeRanges(s fabric.Settings, n node, own []string, h host) []report.Check {
	ranges := []rangeOf{{"burstCIDR", s.BurstCIDR}, {"hostCIDR", s.HostCIDR}}
	if n.kind == fabric.KindNomad {
		for _, c := range s.ClusterCIDRs {
			ranges = append(ranges, rangeOf{"clusterCIDRs", c})
		}
	}
	if s.ServiceCIDR.IsValid() {
		ranges = append(ranges, rangeOf{"serviceCIDR", s.ServiceCIDR})
	}
	var r report.Report
	for _, x := range ranges {
		r.Add(judgeRange(x, own, h))
	}
	for _, o := range s.Overlay() {
		if o.Contains(n.endpoint) {
			r.Add(report.Check{Where: atFabric, What: "endpoint outside the overlay", Result: report.Fail, Found: fmt.Sprintf("%s lies in %s", n.endpoint, o),
				Breaks: "packets to this machine would go into the overlay that they carry: nobody follows it", Remedy: "node.endpoint: an address outside the fabric's ranges"})
		}
	}
	return r.Checks
}

func judgeRange(x rangeOf, own []string, h host) report.Check {
	c := report.Check{Where: atFabric, What: x.key + " " + x.p.String(), Result: report.OK, Found: "nothing else of this machine is in it"}
	inside, around := overlaps(x.p, own, h)
	switch {
	case len(inside) > 0:
		c.Result, c.Found = report.Fail, strings.Join(inside, "; ")
		c.Breaks = "packets for pods and nodes with such addresses go there"
		c.Remedy = "take it away (Docker: bip and default-address-pools in /etc/docker/daemon.json; a VPN: its pushed routes), or set a fabric up with other ranges"
	case len(around) > 0:
		c.Result, c.Found = report.Warn, strings.Join(around, "; ")
		c.Breaks = "what has such an address there is not reached from this machine any more"
		c.Remedy = "nothing, if nobody there has one; otherwise a fabric with other ranges"
	}
	return c
}

// overlaps tells what lies inside the range, and what it lies in. kube-ipvs0 has the
// Services' addresses, as kube-proxy wants it.
func overlaps(p netip.Prefix, own []string, h host) (inside, around []string) {
	for _, l := range h.links {
		if slices.Contains(own, l.name) || l.name == "kube-ipvs0" {
			continue
		}
		for _, a := range l.addrs {
			switch {
			case p.Contains(a.Addr()):
				inside = append(inside, fmt.Sprintf("%s has %s", l.name, a))
			case a.Overlaps(p):
				around = append(around, fmt.Sprintf("%s has %s", l.name, a))
			}
		}
	}
	for _, r := range h.routes {
		if slices.Contains(own, r.dev) || !r.dst.Overlaps(p) {
			continue
		}
		text := fmt.Sprintf("a route to %s by %s", r.dst, r.dev)
		if r.dst.Bits() >= p.Bits() {
			inside = append(inside, text)
		} else {
			around = append(around, text)
		}
	}
	return inside, around
}
