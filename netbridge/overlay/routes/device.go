package routes

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// UnderlayMTU is that of the device which has the address, in bytes.
func UnderlayMTU(endpoint netip.Addr) (int, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list this machine's addresses: %w", err)
	}
	for _, a := range addrs {
		if !a.IP.Equal(endpoint.AsSlice()) {
			continue
		}
		l, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("find the device of %s: %w", endpoint, err)
		}
		return l.Attrs().MTU, nil
	}
	return 0, fmt.Errorf("no device of this machine has the address %s", endpoint)
}

// Missing says that there is no such device.
func Missing(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

// Settle sets what can be set on a device that is in use: its MTU in bytes, its
// address host, up; and that this machine forwards.
func Settle(link netlink.Link, mtu int, host netip.Addr) error {
	a := link.Attrs()
	if a.MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", a.Name, mtu, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
	}
	if err := address(link, host); err != nil {
		return err
	}
	return forwarding()
}

// address gives the device its /32 and takes away others, which would be chosen
// as sources.
func address(link netlink.Link, host netip.Addr) error {
	name := link.Attrs().Name
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	found := false
	for _, a := range addrs {
		if ones, _ := a.Mask.Size(); a.IP.Equal(host.AsSlice()) && ones == 32 {
			found = true
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove %s from %s: %w", a.IPNet, name, err)
		}
	}
	if found {
		return nil
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(host, 32))}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, host, err)
	}
	return nil
}

// forwarding lets the machine pass packets on between pods and the overlay.
func forwarding() error {
	const file = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(file); err == nil && bytes.HasPrefix(now, []byte("1")) {
		return nil
	}
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		return fmt.Errorf("allow forwarding: %w", err)
	}
	return nil
}
