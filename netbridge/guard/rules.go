package guard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is the name of the nftables table, of family ip.
const Table = "netbridge"

// Rules are what the table is made from.
type Rules struct {
	// Device is the overlay's.
	Device string
	// Bridge is that of the pods on a Nomad client; empty on a Kubernetes node,
	// whose pods are its own CNI's.
	Bridge string
	// Cluster, Burst and Host are the ranges of the fabric. What goes from one to
	// another keeps its source; within Cluster it is the cluster's own business.
	Cluster     []netip.Prefix
	Burst, Host netip.Prefix
	// Local are this Nomad client's blocks, which leave the fabric under the
	// machine's address, since nobody outside knows the way back.
	Local []netip.Prefix
	// Port is the UDP port of the overlay's packets, Endpoints those that may send
	// them.
	Port      int
	Endpoints []netip.Addr
}

func set[T fmt.Stringer](items []T) string {
	s := make([]string, len(items))
	for i, p := range items {
		s[i] = p.String()
	}
	slices.Sort(s)
	return "{ " + strings.Join(slices.Compact(s), ", ") + " }"
}

func (r Rules) overlay() []netip.Prefix { return append([]netip.Prefix{r.Burst, r.Host}, r.Cluster...) }

// transaction declares, deletes and defines the table: atomic, and the same
// whatever was there. The set of peers is still empty.
func (r Rules) transaction(nft knftables.Interface) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Set{Name: peerSet, Type: "ipv4_addr"})
	// Chains without a hook are for what few packets are: each packet is asked for it
	// once, not in every rule.
	add := func(c *knftables.Chain, rules []string) {
		tx.Add(c)
		for _, rule := range rules {
			tx.Add(&knftables.Rule{Chain: c.Name, Rule: rule})
		}
	}
	chain := func(name string, rules ...string) { add(&knftables.Chain{Name: name}, rules) }
	hook := func(name string, t knftables.BaseChainType, h knftables.BaseChainHook, prio string, rules ...string) {
		p := knftables.BaseChainPriority(prio)
		add(&knftables.Chain{Name: name, Type: &t, Hook: &h, Priority: &p}, rules)
	}
	chain("inner", "ip saddr != "+set(r.overlay())+" drop")
	chain("tunnel", r.tunnel()...)
	chain("clamp", "oifname "+r.device()+" tcp option maxseg size set rt mtu", "iifname "+r.device()+" tcp option maxseg size set rt mtu")
	hook("nomasq", knftables.NATType, knftables.PostroutingHook, "srcnat-10", r.nomasq()...)
	hook("arriving", knftables.FilterType, knftables.PreroutingHook, "raw",
		"iifname "+r.device()+" jump inner", fmt.Sprintf("udp dport %d fib daddr type local goto tunnel", r.Port))
	hook("leaving", knftables.FilterType, knftables.OutputHook, "raw", fmt.Sprintf("udp dport %d notrack", r.Port))
	hook("mss", knftables.FilterType, knftables.ForwardHook, "mangle", "tcp flags syn jump clamp")
	return tx
}

// serviceMark is what kube-proxy marks packets with that it must masquerade, such as
// those of a pod that reaches itself by a Service (its masqueradeBit, 14).
const serviceMark = "meta mark & 0x4000 == 0x4000"

// nomasq keeps sources; whatever leaves the fabric from a local pod gets the
// machine's. What the machine itself sends into it has the overlay's address: where
// it calls a Service, the source was chosen for the way to that one, and is the
// underlay's, which no peer lets in.
func (r Rules) nomasq() []string {
	bursts := []netip.Prefix{r.Burst, r.Host}
	rules := []string{
		serviceMark + " return",
		fmt.Sprintf("ip saddr %s ip daddr %s snat to ip saddr", set(bursts), set(r.overlay())),
	}
	if len(r.Cluster) > 0 {
		rules = append(rules, fmt.Sprintf("ip saddr %s ip daddr %s snat to ip saddr", set(r.Cluster), set(bursts)))
	}
	rules = append(rules, fmt.Sprintf("oifname %s ip saddr != %s fib saddr type local masquerade", r.device(), set(r.overlay())))
	if len(r.Local) > 0 {
		rules = append(rules, fmt.Sprintf("ip saddr %s ip daddr != %s masquerade", set(r.Local), set(r.overlay())))
	}
	return rules
}

// tunnel is for the overlay's packets to this machine: nobody but peers sends them,
// since VXLAN itself asks for no proof. They are nobody's connection: tracked, each
// flow between pods would take another place in the table, and be looked up twice.
func (r Rules) tunnel() []string {
	return []string{"ip saddr != @" + peerSet + " drop", "notrack"}
}

func (r Rules) device() string { return fmt.Sprintf("%q", r.Device) }

// peers are who may send.
func (r Rules) peers() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, e := range r.Endpoints {
		out[e] = true
	}
	return out
}
