package vmnet

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
)

// Via is where a connection from within a pod to an address, host:port, goes: the
// loopback of a VM that has the pod's address is the guest's, and there it is
// reached by that address. Others stay as they are.
func Via(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !loopback(host) {
		return address
	}
	// Most pods have no bridge, and this is cheaper than to look for the address.
	if _, err := net.InterfaceByName(bridgeName); err != nil {
		return address
	}
	up, err := findUplink()
	if err != nil {
		return address
	}
	return net.JoinHostPort(up.address.Addr().String(), port)
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// Local dials a port on the pod's loopback, as [forward.Local] does, or else the
// guest's.
func Local(ctx context.Context, port int) (net.Conn, error) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if guest := Via(address); guest != address {
		return new(net.Dialer).DialContext(ctx, "tcp4", guest)
	}
	return forward.Local(ctx, port)
}
