package vxlan

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

const (
	protocol = overlay.Protocol
	// last is the preference of a backstop, behind every route.
	last = 4278198272
)

// dump reads what is on the device, and the main table's routes.
func dump(link netlink.Link) (table, error) {
	t := newTable()
	index := link.Attrs().Index
	arp, err := netlink.NeighList(index, netlink.FAMILY_V4)
	if err != nil {
		return t, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range arp {
		if a, ok := netip.AddrFromSlice(n.IP.To4()); ok && n.State&netlink.NUD_PERMANENT != 0 {
			t.neighbours[a] = n.HardwareAddr.String()
		}
	}
	fdb, err := netlink.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return t, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range fdb {
		if a, ok := netip.AddrFromSlice(n.IP.To4()); ok && n.LinkIndex == index {
			t.forwarding[n.HardwareAddr.String()] = a
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return t, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		t.add(r, index)
	}
	return t, nil
}

func (t table) add(r netlink.Route, index int) {
	dst, ok := prefix(r.Dst)
	if !ok {
		return
	}
	if r.Protocol != protocol {
		if r.Priority == 0 {
			t.foreign[dst] = fmt.Sprintf("of protocol %s", r.Protocol)
		}
		return
	}
	if r.Type == unix.RTN_UNREACHABLE {
		t.routes[key{dst, true}] = route{dst: dst, unreachable: true}
		return
	}
	via, _ := netip.AddrFromSlice(r.Gw.To4())
	have := route{dst: dst, via: via, mtu: r.MTU}
	if r.LinkIndex != index {
		have.mtu = -1 // by another device: never what is wanted
	}
	t.routes[key{dst, false}] = have
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP.To4())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a, ones), ok
}

// apply makes one change; what is gone already is no error.
func apply(link netlink.Link, o op, have table) error {
	err := applyOne(link, o, have)
	if o.del && (errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT)) {
		return nil
	}
	return err
}

func applyOne(link netlink.Link, o op, have table) error {
	if o.kind == toRoute {
		return applyRoute(link, o, have)
	}
	mac, err := net.ParseMAC(o.mac)
	if err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: o.addr.AsSlice(), HardwareAddr: mac}
	if o.kind == forward {
		n.Family, n.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
	}
	if o.del {
		return netlink.NeighDel(n)
	}
	return netlink.NeighSet(n)
}

func applyRoute(link netlink.Link, o op, have table) error {
	r := &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: ipnet(o.r.dst), Protocol: protocol}
	if o.r.unreachable {
		r.Type, r.Priority = unix.RTN_UNREACHABLE, last
	} else {
		r.LinkIndex, r.MTU = link.Attrs().Index, o.r.mtu
		r.Scope = netlink.SCOPE_LINK
		if o.r.via.IsValid() {
			r.Scope, r.Gw, r.Flags = netlink.SCOPE_UNIVERSE, o.r.via.AsSlice(), int(netlink.FLAG_ONLINK)
		}
		if whose, taken := have.foreign[o.r.dst]; taken && !o.del {
			// A replacing route would take its place.
			return fmt.Errorf("there is a route to it already, %s", whose)
		}
	}
	if o.del {
		r.LinkIndex, r.MTU = 0, 0 // it may be by another device
		return netlink.RouteDel(r)
	}
	return netlink.RouteReplace(r)
}
