package vmnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forEver is a lease that needs no renewal (RFC 2131, 3.3), in seconds.
const forEver = 0xffffffff

// Serve waits for [Hand] and answers the guest's DHCP requests until ctx ends, with
// what the pod has at that moment; resolvConf names the file of its name servers.
func Serve(ctx context.Context, resolvConf string) error {
	if err := awaitBridge(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("wait for %s: %w", bridgeName, err)
	}
	conn, err := listen()
	if err != nil {
		return fmt.Errorf("listen for DHCP requests: %w", err)
	}
	server, err := server4.NewServer("", nil, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		up, err := findUplink()
		if err != nil {
			fmt.Fprintln(os.Stderr, "DHCP:", err)
			return
		}
		servers, searches := resolvers(resolvConf)
		r, err := reply(m, up, servers, searches)
		if err == nil && r != nil {
			_, err = conn.WriteTo(r.ToBytes(), peer)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "DHCP:", err)
		}
	}, server4.WithConn(conn))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(); ctx.Err() == nil {
		return err
	}
	return nil
}

// awaitBridge returns when the bridge is up.
func awaitBridge(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links := make(chan netlink.LinkUpdate)
	failed := make(chan error, 1)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ListExisting: true, ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}}); err != nil {
		return err
	}
	// The subscription ends when nobody keeps it from saying so.
	defer func() {
		go func() {
			for range links {
			}
		}()
	}()
	for {
		select {
		case l, ok := <-links:
			if !ok {
				return errors.New("the kernel tells no more of links")
			}
			if l.Attrs().Name == bridgeName && l.Attrs().Flags&net.FlagUp != 0 {
				return nil
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// listen opens the server's socket on the bridge. What it sends has no checksum
// (RFC 768): the kernel would leave that to the device, a tap leaves it to the
// guest, and a DHCP client that reads raw frames may take it for a wrong one.
func listen() (*net.UDPConn, error) {
	conn, err := server4.NewIPv4UDPConn(bridgeName, &net.UDPAddr{Port: dhcpv4.ServerPort})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// reply is the answer to a request (RFC 2131, 4.3), nil for none.
func reply(m *dhcpv4.DHCPv4, up *uplink, servers []net.IP, searches []string) (*dhcpv4.DHCPv4, error) {
	kind := dhcpv4.MessageTypeAck
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if to := m.ServerIdentifier(); to != nil && !same(to, self) {
			return nil, nil // another server's
		}
		for _, wanted := range []net.IP{m.RequestedIPAddress(), m.ClientIPAddr} {
			if len(wanted) > 0 && !wanted.IsUnspecified() && !same(wanted, up.address.Addr()) {
				return dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak),
					dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self.AsSlice())))
			}
		}
	case dhcpv4.MessageTypeInform:
	default:
		return nil, nil
	}
	with := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self.AsSlice())),
		dhcpv4.WithNetmask(net.CIDRMask(up.address.Bits(), 32)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(up.link.Attrs().MTU >> 8), byte(up.link.Attrs().MTU)}),
	}
	if m.MessageType() != dhcpv4.MessageTypeInform {
		with = append(with, dhcpv4.WithYourIP(up.address.Addr().AsSlice()), dhcpv4.WithLeaseTime(forEver))
	}
	if up.gateway.IsValid() {
		with = append(with, dhcpv4.WithRouter(up.gateway.AsSlice()))
	}
	if routes := classless(up); len(routes) > 0 {
		with = append(with, dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(routes...)))
	}
	if len(servers) > 0 {
		with = append(with, dhcpv4.WithDNS(servers...))
	}
	if len(searches) > 0 {
		with = append(with, dhcpv4.WithOption(dhcpv4.OptDomainName(searches[0])),
			dhcpv4.WithOption(dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: searches})))
	}
	return dhcpv4.NewReplyFromRequest(m, with...)
}

func same(ip net.IP, a netip.Addr) bool { return ip.Equal(a.AsSlice()) }

// classless are the routes (RFC 3442), if there are any that mask and router do not
// tell. A guest that takes them takes no router beside them.
func classless(up *uplink) []*dhcpv4.Route {
	add := func(to netip.Prefix, gateway netip.Addr) *dhcpv4.Route {
		if !gateway.IsValid() {
			gateway = netip.IPv4Unspecified() // on the link
		}
		return &dhcpv4.Route{Dest: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}, Router: gateway.AsSlice()}
	}
	beside := up.gateway.IsValid() && !up.address.Masked().Contains(up.gateway)
	if len(up.routes) == 0 && !beside {
		return nil
	}
	var out []*dhcpv4.Route
	// Those on the link first: others' gateways may lie there.
	for _, r := range up.routes {
		if !r.gateway.IsValid() {
			out = append(out, add(r.to, r.gateway))
			beside = beside && !r.to.Contains(up.gateway)
		}
	}
	if beside {
		out = append(out, add(netip.PrefixFrom(up.gateway, 32), netip.Addr{}))
	}
	for _, r := range up.routes {
		if r.gateway.IsValid() {
			out = append(out, add(r.to, r.gateway))
		}
	}
	if up.gateway.IsValid() {
		out = append(out, add(netip.PrefixFrom(netip.IPv4Unspecified(), 0), up.gateway))
	}
	return out
}

// resolvers reads name servers and search domains (resolv.conf(5)). Servers on a
// loopback are the client's, which no guest reaches.
func resolvers(file string) (servers []net.IP, searches []string) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text())
		switch {
		case len(words) < 2:
		case words[0] == "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil && a.Is4() && !a.IsLoopback() {
				servers = append(servers, a.AsSlice())
			}
		case words[0] == "search":
			searches = words[1:]
		}
	}
	return servers, searches
}
