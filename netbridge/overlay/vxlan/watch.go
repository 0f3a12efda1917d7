package vxlan

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// buffer of a subscription, in bytes: a burst of other people's events must not
	// overflow it at once.
	buffer = 1 << 20
	// resubscribe is how long a subscription that failed is left.
	resubscribe = 200 * time.Millisecond
)

// Watch listens for the device's end or change, and for removed routes,
// neighbours and forwarding entries. Where the kernel has dropped events, because
// the buffer was full, that is told as a change, and it listens anew.
func (b *Backend) Watch(ctx context.Context, changed func(string)) error {
	ended, err := b.subscribe(ctx, changed)
	if err != nil {
		return err
	}
	go func() {
		for {
			<-ended
			if ctx.Err() != nil {
				return
			}
			b.log.Warn("events of the network were lost, listens again")
			for {
				if ended, err = b.subscribe(ctx, changed); err == nil {
					break
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(resubscribe):
				}
			}
			changed("events were lost")
		}
	}()
	return nil
}

// subscribe returns a channel that is closed when one of the subscriptions has
// ended, and with it all.
func (b *Backend) subscribe(ctx context.Context, changed func(string)) (<-chan struct{}, error) {
	ctx, cancel := context.WithCancel(ctx)
	links := make(chan netlink.LinkUpdate)
	routes := make(chan netlink.RouteUpdate)
	neighs := make(chan netlink.NeighUpdate)
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ReceiveBufferSize: buffer})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	err = netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ReceiveBufferSize: buffer})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listen for routes: %w", err)
	}
	err = netlink.NeighSubscribeWithOptions(neighs, ctx.Done(), netlink.NeighSubscribeOptions{ReceiveBufferSize: buffer})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("listen for neighbours: %w", err)
	}
	var all sync.WaitGroup
	read := func(f func()) {
		all.Go(func() {
			defer cancel()
			f()
		})
	}
	read(func() { b.links(links, changed) })
	read(func() {
		for u := range routes {
			if u.Type == unix.RTM_DELROUTE && u.Protocol == protocol {
				changed("a route was removed")
			}
		}
	})
	read(func() {
		for u := range neighs {
			// A removed neighbour is first told as one that has failed.
			if (u.Type == unix.RTM_DELNEIGH || u.State&netlink.NUD_FAILED != 0) && b.ours(u.LinkIndex) {
				changed("a neighbour or forwarding entry was removed")
			}
		}
	})
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	return ended, nil
}

func (b *Backend) ours(index int) bool {
	l, err := netlink.LinkByIndex(index)
	return err != nil || l.Attrs().Name == b.cfg.Name
}

func (b *Backend) links(links <-chan netlink.LinkUpdate, changed func(string)) {
	for u := range links {
		a := u.Attrs()
		if a.Name != b.cfg.Name {
			continue
		}
		switch {
		case u.Header.Type == unix.RTM_DELLINK:
			changed("the device was removed")
		case a.Flags&net.FlagUp == 0:
			changed("the device was set down")
		case a.MTU != b.mtu || a.HardwareAddr.String() != b.cfg.MAC.String():
			changed("the device was changed")
		}
	}
}
