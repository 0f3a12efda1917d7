package resolver

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Zone is a part of the name space with servers of its own.
type Zone struct {
	// Name is what metrics call it.
	Name string
	// Domains are the names at or below which it is, each with a dot at its end.
	Domains []string
	// Ranges are the addresses whose reverse names are its.
	Ranges []netip.Prefix
	// Servers, host:port, are asked in this order.
	Servers []string
}

// holds takes a canonical name.
func (z *Zone) holds(name string, addr netip.Addr) bool {
	if addr.IsValid() && slices.ContainsFunc(z.Ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return true
	}
	return slices.ContainsFunc(z.Domains, func(d string) bool { return dns.IsSubDomain(d, name) })
}

// find returns the first zone that the name is in: the last one has all names.
func find(zones []Zone, name string) *Zone {
	addr := reversed(name)
	for i := range zones {
		if zones[i].holds(name, addr) {
			return &zones[i]
		}
	}
	return nil
}

// reversed is the IPv4 address of a reverse name (RFC 1035, 3.5); invalid for any
// other name.
func reversed(name string) netip.Addr {
	host, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	if !ok {
		return netip.Addr{}
	}
	labels := strings.Split(host, ".")
	slices.Reverse(labels)
	addr, err := netip.ParseAddr(strings.Join(labels, "."))
	if err != nil {
		return netip.Addr{}
	}
	return addr
}
