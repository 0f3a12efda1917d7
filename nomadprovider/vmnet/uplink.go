package vmnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// uplink is the device that CNI has made, with what it was given.
type uplink struct {
	link    netlink.Link
	address netip.Prefix
	gateway netip.Addr // invalid for none
	// routes are those beside the link's own and the default.
	routes []route
}

// route is one to a range, by a gateway, or invalid for one on the link.
type route struct {
	to      netip.Prefix
	gateway netip.Addr
}

// findUplink looks for the device with the pod's IPv4 address.
func findUplink() (*uplink, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the pod's devices: %w", err)
	}
	for _, l := range links {
		if a := l.Attrs(); a.Flags&net.FlagLoopback != 0 || a.Name == bridgeName || a.Name == tapName {
			continue
		}
		addresses, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addresses {
			if p, ok := prefix(a.IPNet); ok && a.Scope == unix.RT_SCOPE_UNIVERSE {
				u := &uplink{link: l, address: p}
				return u, u.readRoutes()
			}
		}
	}
	return nil, errors.New("the pod has no device with an IPv4 address")
}

// readRoutes takes them from the main table, as CNI has written them.
func (u *uplink) readRoutes() error {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_V4,
		&netlink.Route{LinkIndex: u.link.Attrs().Index, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list the pod's routes: %w", err)
	}
	for _, r := range list {
		gateway, _ := netip.AddrFromSlice(r.Gw.To4()) // invalid without one
		to, ok := prefix(r.Dst)
		switch {
		case !ok || to.Bits() == 0:
			u.gateway = gateway
		case to != u.address.Masked():
			u.routes = append(u.routes, route{to, gateway})
		}
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits), ok
}
