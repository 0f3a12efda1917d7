package overlaytest

import (
	"encoding/base64"
	"net"
	"net/netip"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// Key is a peer's public key.
func Key(n byte) [32]byte { return [32]byte{31: n} }

// Peer has all that any backend asks of one: nomad/b is 10.78.0.1 in the overlay,
// 192.0.2.1 in the underlay, 02:00:00:00:00:01, and [Key] 1.
func Peer(n byte, cidrs ...string) overlay.Peer {
	key := Key(n)
	p := overlay.Peer{
		Name: "nomad/" + string('a'+rune(n)), Host: netip.AddrFrom4([4]byte{10, 78, 0, n}), Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, n}),
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, n}, Key: base64.StdEncoding.EncodeToString(key[:]), MTU: 1450,
	}
	for _, c := range cidrs {
		p.CIDRs = append(p.CIDRs, netip.MustParsePrefix(c))
	}
	return p
}

// Goal has two peers with three ranges, five routes in all, and one range that
// nobody may have.
func Goal() overlay.Goal {
	return overlay.Goal{Prune: true, Peers: []overlay.Peer{Peer(1, "10.77.1.0/25"), Peer(2, "10.77.2.0/25", "10.77.3.0/25")},
		Backstop: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}
}

// Many has that many peers with a range each, at most 45,000.
func Many(count int) overlay.Goal {
	g := overlay.Goal{Prune: true}
	for i := range count {
		high, low := byte(i>>8), byte(i)
		key := [32]byte{1, high, low}
		p := Peer(1)
		p.Host = netip.AddrFrom4([4]byte{10, 78, 4 + high, low})
		p.Endpoint = netip.AddrFrom4([4]byte{198, 18, high, low})
		p.MAC = net.HardwareAddr{2, 1, 0, 0, high, low}
		p.Key = base64.StdEncoding.EncodeToString(key[:])
		p.CIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 80 + high, low, 0}), 25)}
		g.Peers = append(g.Peers, p)
	}
	return g
}
