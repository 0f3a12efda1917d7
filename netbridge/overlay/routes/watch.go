package routes

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

const (
	// Buffer of a subscription, in bytes: a burst of other people's events must not
	// overflow it at once.
	Buffer = 1 << 20
	// resubscribe is how long a subscription that failed is left.
	resubscribe = 200 * time.Millisecond
)

// Source subscribes to one kind of events until done is closed. read tells what
// matters of them, and returns when the subscription has ended.
type Source func(done <-chan struct{}, changed func(what string)) (read func(), err error)

// Watch calls changed for what the sources tell, until ctx ends. Where the kernel
// has dropped events, because the buffer was full, that is told as a change, and
// it listens anew. It returns when it listens.
func Watch(ctx context.Context, log hclog.Logger, changed func(string), sources ...Source) error {
	ended, err := subscribe(ctx, changed, sources)
	if err != nil {
		return err
	}
	go func() {
		for {
			<-ended
			if ctx.Err() != nil {
				return
			}
			log.Warn("events of the network were lost, listens again")
			for {
				if ended, err = subscribe(ctx, changed, sources); err == nil {
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
func subscribe(ctx context.Context, changed func(string), sources []Source) (<-chan struct{}, error) {
	ctx, cancel := context.WithCancel(ctx)
	var reads []func()
	for _, s := range sources {
		read, err := s(ctx.Done(), changed)
		if err != nil {
			cancel()
			return nil, err
		}
		reads = append(reads, read)
	}
	var all sync.WaitGroup
	for _, read := range reads {
		all.Go(func() {
			defer cancel()
			read()
		})
	}
	ended := make(chan struct{})
	go func() {
		all.Wait()
		cancel()
		close(ended)
	}()
	return ended, nil
}

// Device tells the end of the device of that name, that it is down, and a change
// by which it differs from what it should be.
func Device(name string, differs func(*netlink.LinkAttrs) bool) Source {
	return func(done <-chan struct{}, changed func(string)) (func(), error) {
		links := make(chan netlink.LinkUpdate)
		if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ReceiveBufferSize: Buffer}); err != nil {
			return nil, fmt.Errorf("listen for devices: %w", err)
		}
		return func() {
			for u := range links {
				a := u.Attrs()
				switch {
				case a.Name != name:
				case u.Header.Type == unix.RTM_DELLINK:
					changed("the device was removed")
				case a.Flags&net.FlagUp == 0:
					changed("the device was set down")
				case differs(a):
					changed("the device was changed")
				}
			}
		}, nil
	}
}

// Removed tells that a route of ours was removed.
func Removed(done <-chan struct{}, changed func(string)) (func(), error) {
	routes := make(chan netlink.RouteUpdate)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ReceiveBufferSize: Buffer}); err != nil {
		return nil, fmt.Errorf("listen for routes: %w", err)
	}
	return func() {
		for u := range routes {
			if u.Type == unix.RTM_DELROUTE && u.Protocol == overlay.Protocol {
				changed("a route was removed")
			}
		}
	}, nil
}
