package vxlan

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
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
	t.routes, err = routes.Dump(link)
	return t, err
}

// apply makes one change; what is gone already is no error.
func apply(link netlink.Link, o op, have table) error {
	if o.kind == toRoute {
		return have.routes.Apply(link, o.r)
	}
	mac, err := net.ParseMAC(o.mac)
	if err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: o.addr.AsSlice(), HardwareAddr: mac}
	if o.kind == forward {
		n.Family, n.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
	}
	if !o.del {
		return netlink.NeighSet(n)
	}
	if err := netlink.NeighDel(n); !routes.Gone(err) {
		return err
	}
	return nil
}
