package fabric

import (
	"errors"
	"fmt"
	"net/netip"
)

// Backends.
const (
	BackendVXLAN = "vxlan"
	// BackendWireGuard encrypts, and a record carries its node's public key.
	BackendWireGuard = "wireguard"
)

// Settings are one fabric's, the same on all its nodes. An operator writes them;
// agents only read.
type Settings struct {
	// ClusterCIDRs hold the pods of the Kubernetes cluster's own nodes.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	// ServiceCIDR holds the cluster's Services; the overlay never routes it.
	ServiceCIDR netip.Prefix `json:"serviceCIDR,omitzero"`
	// BurstCIDR holds the pods on Nomad; it is handed out in blocks.
	BurstCIDR netip.Prefix `json:"burstCIDR"`
	// BlockBits is the prefix length of a block.
	BlockBits int `json:"blockBits"`
	// HostCIDR holds one address a node, which its overlay device has.
	HostCIDR netip.Prefix `json:"hostCIDR"`
	// Backend carries the packets, the same one between all nodes.
	Backend string `json:"backend"`
	// VNI is the VXLAN network identifier, 1 to 2^24-1. WireGuard has none.
	VNI int `json:"vni"`
	// Port is the UDP port of the backend's packets. Not 4789: Calico drops what
	// arrives there from others than its own nodes.
	Port int `json:"port"`
	// DNS is the cluster's, for pods on Nomad.
	DNS DNS `json:"dns,omitzero"`
}

// DNS says who knows the cluster's names.
type DNS struct {
	// Domain is the cluster's, without a dot at its end.
	Domain string `json:"domain,omitempty"`
	// Servers are asked in this order, at port 53: addresses of pods, which are reached
	// over the overlay, or of a Service, where clients have kube-proxy.
	Servers []netip.Addr `json:"servers,omitempty"`
}

// Complete fills in what was left empty.
func (s *Settings) Complete() {
	def(&s.BurstCIDR, netip.MustParsePrefix("10.77.0.0/16"))
	def(&s.HostCIDR, netip.MustParsePrefix("10.78.0.0/20"))
	def(&s.BlockBits, 25)
	def(&s.Backend, BackendVXLAN)
	def(&s.VNI, 20034)
	def(&s.Port, 8473)
	def(&s.DNS.Domain, "cluster.local")
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Validate names what is wrong by its key.
func (s Settings) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ranges := map[string]netip.Prefix{"burstCIDR": s.BurstCIDR, "hostCIDR": s.HostCIDR}
	if s.ServiceCIDR.IsValid() {
		ranges["serviceCIDR"] = s.ServiceCIDR
	}
	for i, c := range s.ClusterCIDRs {
		ranges[fmt.Sprintf("clusterCIDRs[%d]", i)] = c
	}
	for key, p := range ranges {
		switch {
		case !p.IsValid() || !p.Addr().Is4():
			bad("%s: %v is no IPv4 range", key, p)
		case p != p.Masked():
			bad("%s: %s has bits behind its prefix, say %s", key, p, p.Masked())
		}
	}
	for key, p := range ranges {
		for other, o := range ranges {
			if key < other && p.IsValid() && o.IsValid() && p.Overlaps(o) {
				bad("%s %s and %s %s overlap", key, p, other, o)
			}
		}
	}
	if s.BlockBits <= s.BurstCIDR.Bits() || s.BlockBits > 29 {
		bad("blockBits: %d is not between burstCIDR's %d and 29", s.BlockBits, s.BurstCIDR.Bits())
	}
	if s.HostCIDR.IsValid() && s.HostCIDR.Bits() > 30 {
		bad("hostCIDR: %s has no room for two nodes", s.HostCIDR)
	}
	if s.Backend != BackendVXLAN && s.Backend != BackendWireGuard {
		bad("backend: %q is not known, there are %q and %q", s.Backend, BackendVXLAN, BackendWireGuard)
	}
	if s.VNI < 1 || s.VNI >= 1<<24 {
		bad("vni: %d is not between 1 and %d", s.VNI, 1<<24-1)
	}
	if s.Port < 1 || s.Port > 65535 {
		bad("port: %d is no UDP port", s.Port)
	}
	return errors.Join(errs...)
}

// Overlay lists the ranges between which source addresses are kept.
func (s Settings) Overlay() []netip.Prefix {
	return append([]netip.Prefix{s.BurstCIDR, s.HostCIDR}, s.ClusterCIDRs...)
}

// Blocks is how many blocks there are.
func (s Settings) Blocks() int { return 1 << (s.BlockBits - s.BurstCIDR.Bits()) }

// Block is the i-th.
func (s Settings) Block(i int) netip.Prefix {
	return netip.PrefixFrom(at(s.BurstCIDR.Addr(), uint32(i)<<(32-s.BlockBits)), s.BlockBits)
}

// Hosts is how many addresses nodes can have; the first and the last of the
// range are nobody's.
func (s Settings) Hosts() int { return 1<<(32-s.HostCIDR.Bits()) - 2 }

// Host is the i-th.
func (s Settings) Host(i int) netip.Addr { return at(s.HostCIDR.Addr(), uint32(i)+1) }

func at(a netip.Addr, by uint32) netip.Addr {
	b := a.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += by
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// Gateway is a block's first address, which the node's bridge has.
func Gateway(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }
