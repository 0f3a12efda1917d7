package vxlan

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
)

// Watch listens for the device's end or change, and for removed routes,
// neighbours and forwarding entries. Where the kernel has dropped events, because
// the buffer was full, that is told as a change, and it listens anew.
func (b *Backend) Watch(ctx context.Context, changed func(string)) error {
	differs := func(a *netlink.LinkAttrs) bool {
		return a.MTU != b.mtu || a.HardwareAddr.String() != b.cfg.MAC.String()
	}
	return routes.Watch(ctx, b.log, changed, routes.Device(b.cfg.Name, differs), routes.Removed, b.neighbours)
}

// neighbours is a [routes.Source].
func (b *Backend) neighbours(done <-chan struct{}, changed func(string)) (func(), error) {
	neighs := make(chan netlink.NeighUpdate)
	if err := netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{ReceiveBufferSize: routes.Buffer}); err != nil {
		return nil, fmt.Errorf("listen for neighbours: %w", err)
	}
	return func() {
		for u := range neighs {
			// A removed neighbour is first told as one that has failed.
			if (u.Type == unix.RTM_DELNEIGH || u.State&netlink.NUD_FAILED != 0) && b.ours(u.LinkIndex) {
				changed("a neighbour or forwarding entry was removed")
			}
		}
	}, nil
}

func (b *Backend) ours(index int) bool {
	l, err := netlink.LinkByIndex(index)
	return err != nil || l.Attrs().Name == b.cfg.Name
}
