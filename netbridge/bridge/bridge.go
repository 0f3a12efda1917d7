package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// Config is the device as it should be.
type Config struct {
	Name string
	// MTU in bytes, the overlay's.
	MTU int
	// MAC is the device's. Without one of its own a bridge takes a port's, and changes
	// it with its ports under the pods' feet. So does the one that the CNI plugin makes
	// where pods come before the agent, as after a boot.
	MAC net.HardwareAddr
	// Blocks are the client's.
	Blocks []netip.Prefix
	// Also is an address beside the gateways'; invalid for none.
	Also netip.Addr
}

// Ensure makes the device or adopts it, gives it the blocks' gateways, and takes
// other IPv4 addresses away. It says whether anything was done.
func Ensure(c Config) (bool, error) {
	link, err := netlink.LinkByName(c.Name)
	made := false
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		if link, err = add(c); err != nil {
			return false, err
		}
		made = true
	case err != nil:
		return false, fmt.Errorf("find bridge %s: %w", c.Name, err)
	case link.Type() != "bridge":
		return false, fmt.Errorf("device %s is a %s of somebody else's: remove or rename it", c.Name, link.Type())
	}
	if !bytes.Equal(link.Attrs().HardwareAddr, c.MAC) {
		// Pods that have asked for the gateway are told of its new address (ip-sysctl.rst,
		// arp_notify). Where that cannot be set they ask again by themselves.
		_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+c.Name+"/arp_notify", []byte("1"), 0)
		if err := netlink.LinkSetHardwareAddr(link, c.MAC); err != nil {
			return made, fmt.Errorf("set the address of %s to %s: %w", c.Name, c.MAC, err)
		}
		made = true
	}
	if link.Attrs().MTU != c.MTU {
		if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
			return made, fmt.Errorf("set the MTU of %s to %d: %w", c.Name, c.MTU, err)
		}
		made = true
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return made, fmt.Errorf("set %s up: %w", c.Name, err)
		}
		made = true
	}
	changed, err := addresses(link, c)
	return made || changed, err
}

func add(c Config) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	// Its MTU is set afterwards: one that it was made with follows its ports', and is
	// 1500 when there are none (net/bridge/br_if.c, br_mtu_auto_adjust).
	attrs.Name, attrs.HardwareAddr = c.Name, c.MAC
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", c.Name, err)
	}
	return netlink.LinkByName(c.Name)
}

func addresses(link netlink.Link, c Config) (bool, error) {
	want := map[string]bool{}
	for _, b := range c.Blocks {
		want[netip.PrefixFrom(fabric.Gateway(b), b.Bits()).String()] = true
	}
	if c.Also.IsValid() {
		want[netip.PrefixFrom(c.Also, c.Also.BitLen()).String()] = true
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("list the addresses of %s: %w", c.Name, err)
	}
	changed := false
	for _, a := range have {
		if want[a.IPNet.String()] {
			delete(want, a.IPNet.String())
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return changed, fmt.Errorf("remove %s from %s: %w", a.IPNet, c.Name, err)
		}
		changed = true
	}
	for w := range want {
		addr, err := netlink.ParseAddr(w)
		if err == nil {
			err = netlink.AddrReplace(link, addr)
		}
		if err != nil {
			return changed, fmt.Errorf("give %s the address %s: %w", c.Name, w, err)
		}
		changed = true
	}
	return changed, nil
}
