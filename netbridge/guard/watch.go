package guard

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed when anybody has written nftables rules, this package
// included, until ctx ends. iptables' own are written by nftables, too, except by
// the legacy program, whose changes only an audit sees. It returns when it
// listens.
func (g *Guard) Watch(ctx context.Context, changed func(what string)) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("listen for nftables: %w", err)
	}
	context.AfterFunc(ctx, s.Close)
	go func() {
		for ctx.Err() == nil {
			if _, _, err := s.Receive(); err != nil && ctx.Err() == nil && !errors.Is(err, unix.ENOBUFS) {
				// The audit goes on without events.
				g.log.Warn("no events of nftables any more, only audits", "error", err)
				return
			}
			changed("nftables rules were written")
		}
	}()
	return nil
}
