package routes

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// last is the preference of a backstop, behind every route.
const last = 4278198272

// Dump reads the main table; what is ours and not by the device is never what is
// wanted.
func Dump(link netlink.Link) (Table, error) {
	t := NewTable()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return t, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		t.add(r, link.Attrs().Index)
	}
	return t, nil
}

func (t Table) add(r netlink.Route, index int) {
	dst, ok := prefix(r.Dst)
	if !ok {
		return
	}
	if r.Protocol != overlay.Protocol {
		if r.Priority == 0 {
			t.Foreign[dst] = fmt.Sprintf("of protocol %s", r.Protocol)
		}
		return
	}
	if r.Type == unix.RTN_UNREACHABLE {
		t.Routes[Key{dst, true}] = Route{Dst: dst, Unreachable: true}
		return
	}
	via, _ := netip.AddrFromSlice(r.Gw.To4())
	have := Route{Dst: dst, Via: via, MTU: r.MTU}
	if r.LinkIndex != index {
		have.MTU = -1 // by another device: never what is wanted
	}
	t.Routes[Key{dst, false}] = have
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a, ones), ok
}

// Gone says that what was to be removed is not there.
func Gone(err error) bool { return errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT) }

// Apply makes one change; what is gone already is no error. A route of somebody
// else's is neither replaced nor removed.
func (t Table) Apply(link netlink.Link, o Op) error {
	r := &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: ipnet(o.Route.Dst), Protocol: overlay.Protocol}
	if o.Route.Unreachable {
		r.Type, r.Priority = unix.RTN_UNREACHABLE, last
	} else {
		r.LinkIndex, r.MTU = link.Attrs().Index, o.Route.MTU
		r.Scope = netlink.SCOPE_LINK
		if o.Route.Via.IsValid() {
			r.Scope, r.Gw, r.Flags = netlink.SCOPE_UNIVERSE, o.Route.Via.AsSlice(), int(netlink.FLAG_ONLINK)
		}
		if whose, taken := t.Foreign[o.Route.Dst]; taken && !o.Del {
			// A replacing route would take its place.
			return fmt.Errorf("there is a route to it already, %s", whose)
		}
	}
	if !o.Del {
		return netlink.RouteReplace(r)
	}
	r.LinkIndex, r.MTU = 0, 0 // it may be by another device
	if err := netlink.RouteDel(r); !Gone(err) {
		return err
	}
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
