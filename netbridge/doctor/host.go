package doctor

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// link is a network device.
type link struct {
	name, kind, mac string
	mtu             int
	// addrs are IPv4 addresses with their prefixes.
	addrs []netip.Prefix
	// vni and port are a VXLAN device's.
	vni, port int
}

// route is one of the main table that is not the default one, not ours, and not of
// an address of the machine's own.
type route struct {
	dst netip.Prefix
	dev string
}

// host is the machine's network as the kernel has it.
type host struct {
	links  []link
	routes []route
	// sockets are the UDP ports that are taken.
	sockets map[int]bool
}

func (h host) link(name string) (link, bool) {
	for _, l := range h.links {
		if l.name == name {
			return l, true
		}
	}
	return link{}, false
}

// with is the device that has the address.
func (h host) with(a netip.Addr) (link, bool) {
	for _, l := range h.links {
		for _, p := range l.addrs {
			if p.Addr() == a {
				return l, true
			}
		}
	}
	return link{}, false
}

func lookHost() (host, error) {
	var h host
	links, err := netlink.LinkList()
	if err != nil {
		return h, fmt.Errorf("list devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		found := link{name: a.Name, kind: l.Type(), mac: a.HardwareAddr.String(), mtu: a.MTU}
		switch v := l.(type) {
		case *netlink.Vxlan:
			found.vni, found.port = v.VxlanId, v.Port
		case *netlink.Tuntap:
			// What a process carries that speaks WireGuard is as good as the kernel's.
			if _, err := os.Stat("/var/run/wireguard/" + a.Name + ".sock"); err == nil {
				found.kind = fabric.BackendWireGuard
			}
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return h, fmt.Errorf("list the addresses of %s: %w", a.Name, err)
		}
		for _, x := range addrs {
			if p, ok := prefix(x.IP, x.Mask); ok {
				found.addrs = append(found.addrs, p)
			}
		}
		h.links = append(h.links, found)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return h, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Protocol == overlay.Protocol || r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		if p, ok := prefix(r.Dst.IP, r.Dst.Mask); ok && p.Bits() > 0 {
			h.routes = append(h.routes, route{p.Masked(), names[r.LinkIndex]})
		}
	}
	h.sockets, err = udpPorts("/proc/net/udp")
	return h, err
}

func prefix(ip []byte, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if !ok || !a.Is4() {
		return netip.Prefix{}, false
	}
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(a, ones), true
}
