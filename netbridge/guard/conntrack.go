package guard

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rebind removes the entries of connections that began while the rules were not
// there and had their source changed: without it they would keep the wrong source
// for their whole life. The next packet makes a right one.
func rebind(r Rules) (uint, error) {
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, wrong{r})
	if err != nil {
		return n, fmt.Errorf("remove wrongly bound connections: %w", err)
	}
	return n, nil
}

// wrong matches what a rule of nomasq would have left alone.
type wrong struct{ r Rules }

func (w wrong) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, dst := address(f.Forward.SrcIP), address(f.Reverse.SrcIP)
	if address(f.Reverse.DstIP) == src {
		return false
	}
	// The reply comes from where the packet went, which is what the rules look at.
	burst := func(a netip.Addr) bool { return w.r.Burst.Contains(a) || w.r.Host.Contains(a) }
	cluster := func(a netip.Addr) bool {
		for _, c := range w.r.Cluster {
			if c.Contains(a) {
				return true
			}
		}
		return false
	}
	return burst(src) && (burst(dst) || cluster(dst)) || cluster(src) && burst(dst)
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
