package vmnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgeName = "vmbr0"
	// tapName is the guest's end, which translate names to qemu.
	tapName = "vmtap0"
	// table holds the namespace's own routes; rulePriority is that of the rule which
	// has it looked at before the main one.
	table        = 217
	rulePriority = 100
)

// self is the namespace's own address towards the guest. The first ones of
// 169.254/16 are others': resolvers', gateways', and clouds' metadata.
var self = netip.MustParseAddr("169.254.217.1")

// Hand gives the pod's address to the guest with that MAC, whose VM opens the tap
// that is made here. Done once more it changes nothing. It needs CAP_NET_ADMIN,
// CAP_NET_RAW and /dev/net/tun.
func Hand(guest net.HardwareAddr) error {
	up, err := findUplink()
	if err != nil {
		return err
	}
	mtu := up.link.Attrs().MTU
	bridge, err := makeBridge(neighbour(guest), mtu)
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", bridgeName, err)
	}
	// Before anything is joined.
	if err := writeRules(up.link.Attrs().Name, up.address.Addr(), guest, neighbour(guest)); err != nil {
		return fmt.Errorf("write rules for the bridge (nftables, family bridge): %w", err)
	}
	tap, err := makeTap(mtu)
	if err != nil {
		return fmt.Errorf("make %s (/dev/net/tun): %w", tapName, err)
	}
	if err := giveUp(up, bridge); err != nil {
		return fmt.Errorf("give up the pod's address: %w", err)
	}
	for _, l := range []netlink.Link{tap, up.link} {
		if err := join(l, bridge); err != nil {
			return fmt.Errorf("put %s into %s: %w", l.Attrs().Name, bridgeName, err)
		}
	}
	if err := announce(up.link.Attrs().Index, up.address.Addr(), guest); err != nil {
		return fmt.Errorf("announce the guest: %w", err)
	}
	return nil
}

// neighbour is the bridge's MAC: of the guest's, and not it.
func neighbour(guest net.HardwareAddr) net.HardwareAddr {
	mac := slices.Clone(guest)
	mac[0] ^= 0x04
	return mac
}

// makeBridge makes the bridge with the namespace's own address.
func makeBridge(mac net.HardwareAddr, mtu int) (netlink.Link, error) {
	link, err := find(bridgeName)
	if err == nil && link == nil {
		attrs := netlink.NewLinkAttrs()
		// Without one of its own a bridge takes a port's MAC, and changes it with them.
		attrs.Name, attrs.HardwareAddr = bridgeName, mac
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(false)}); err == nil {
			link, err = find(bridgeName)
		}
	}
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: netlink.NewIPNet(self.AsSlice()), Scope: unix.RT_SCOPE_LINK}
	return link, errors.Join(netlink.LinkSetHardwareAddr(link, mac), netlink.AddrReplace(link, addr), finish(link, mtu))
}

// makeTap makes the tap so that it stays when a VM closes it: the next one opens
// it again, and finds all as it was.
func makeTap(mtu int) (netlink.Link, error) {
	link, err := find(tapName)
	if err == nil && link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = tapName
		tap := &netlink.Tuntap{
			LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1,
		}
		if err = netlink.LinkAdd(tap); err == nil {
			for _, f := range tap.Fds {
				err = errors.Join(err, f.Close())
			}
			if err == nil {
				link, err = find(tapName)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return link, finish(link, mtu)
}

// find is nil for a device that is not there.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if none := (netlink.LinkNotFoundError{}); errors.As(err, &none) {
		return nil, nil
	}
	return link, err
}

func finish(link netlink.Link, mtu int) error {
	return errors.Join(netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link))
}

// giveUp leaves the address where it is, and has the namespace find it at the
// guest. There is nowhere else that it could speak to: answers go to the guest.
func giveUp(up *uplink, bridge netlink.Link) error {
	address := up.address.Addr()
	for _, r := range []*netlink.Route{
		{Dst: netlink.NewIPNet(address.AsSlice()), LinkIndex: bridge.Attrs().Index, Src: self.AsSlice(), Scope: unix.RT_SCOPE_LINK, Table: table},
		{Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Type: unix.RTN_UNREACHABLE, Table: table},
	} {
		if err := netlink.RouteReplace(r); err != nil {
			return err
		}
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table = netlink.FAMILY_V4, rulePriority, table
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, syscall.EEXIST) {
		return err
	}
	local := &netlink.Route{
		Dst: netlink.NewIPNet(address.AsSlice()), LinkIndex: up.link.Attrs().Index, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: unix.RT_TABLE_LOCAL,
	}
	if err := netlink.RouteDel(local); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// join makes a device a port of the bridge. No port learns: there are but two, and
// what a client's bridge throws back (hairpin mode, which reflects the guest's
// broadcasts) would have the guest looked for on the wrong one.
func join(link, bridge netlink.Link) error {
	if link.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return err
		}
	}
	return netlink.LinkSetLearning(link, false)
}

// announce tells those who knew the address at the pod's device of the guest's MAC
// (RFC 5227, 3): an ARP request by the guest for itself.
func announce(index int, address netip.Addr, guest net.HardwareAddr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ip := address.AsSlice()
	frame := bytes.Join([][]byte{
		bytes.Repeat([]byte{0xff}, 6), guest, {0x08, 0x06}, // Ethernet
		{0, 1, 0x08, 0, 6, 4, 0, 1}, guest, ip, make([]byte, 6), ip, // ARP: Ethernet, IPv4, request
	}, nil)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index})
}
