package wireguard

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// greeting is the keepalive of a peer that no hand-shake has taken place with. Its
// first packet begins one at once: where this device is new, the peer still has a
// session with the former one, and sends what nobody can read until then. A peer
// that is new is greeted the next time: its answer comes back when it is let in,
// and one that is lost is waited for for five seconds.
const greeting = 25 * time.Second

// peer is what there is of one on the device, or is to be.
type peer struct {
	endpoint  netip.AddrPort
	allowed   map[netip.Prefix]bool
	keepalive time.Duration
	// met says that a hand-shake has taken place.
	met bool
}

// want makes the peers of a goal, whose names are for messages. port is the same
// at all of them.
func want(g overlay.Goal, port int) (peers map[wgtypes.Key]peer, names map[wgtypes.Key]string, err error) {
	peers, names = map[wgtypes.Key]peer{}, map[wgtypes.Key]string{}
	for _, p := range g.Peers {
		key, bad := wgtypes.ParseKey(p.Key)
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("%s: its key: %w", p.Name, bad))
			continue
		}
		allowed := map[netip.Prefix]bool{netip.PrefixFrom(p.Host, p.Host.BitLen()): true}
		for _, c := range p.CIDRs {
			allowed[c] = true
		}
		peers[key], names[key] = peer{endpoint: netip.AddrPortFrom(p.Endpoint, uint16(port)), allowed: allowed}, p.Name
	}
	return peers, names, err
}

// found makes the peers that a device has.
func found(d *wgtypes.Device) map[wgtypes.Key]peer {
	out := map[wgtypes.Key]peer{}
	for _, p := range d.Peers {
		h := peer{allowed: map[netip.Prefix]bool{}, keepalive: p.PersistentKeepaliveInterval, met: !p.LastHandshakeTime.IsZero()}
		if p.Endpoint != nil {
			ap := p.Endpoint.AddrPort()
			h.endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		}
		for _, a := range p.AllowedIPs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				ones, _ := a.Mask.Size()
				h.allowed[netip.PrefixFrom(addr.Unmap(), ones)] = true
			}
		}
		out[p.PublicKey] = h
	}
	return out
}

// change is one peer's.
type change struct {
	cfg wgtypes.PeerConfig
	// what says it in words; empty where it is only that the greeting begins or
	// ends, which is no difference that anybody need know of.
	what string
}

// plan returns the changes that come before the routes, and those after.
func plan(want, have map[wgtypes.Key]peer, names map[wgtypes.Key]string, prune bool) (set, gone []change) {
	for _, k := range slices.SortedFunc(maps.Keys(want), byKey) {
		h, there := have[k]
		if c, differs := diff(k, want[k], h, there, prune); differs {
			if c.what != "" {
				c.what = fmt.Sprintf("set peer %s: %s", cmp.Or(names[k], k.String()), c.what)
			}
			set = append(set, c)
		}
	}
	if !prune {
		return set, nil
	}
	for _, k := range slices.SortedFunc(maps.Keys(have), byKey) {
		if _, ok := want[k]; !ok {
			gone = append(gone, change{wgtypes.PeerConfig{PublicKey: k, Remove: true}, "remove peer with key " + k.String()})
		}
	}
	return set, gone
}

func byKey(a, b wgtypes.Key) int { return bytes.Compare(a[:], b[:]) }

// diff tells only what differs: the rest of the peer, and its session, stay.
func diff(k wgtypes.Key, w, h peer, there, prune bool) (change, bool) {
	c := change{cfg: wgtypes.PeerConfig{PublicKey: k}}
	if !there {
		c.what = "it is new"
	}
	if h.endpoint != w.endpoint {
		c.cfg.Endpoint = net.UDPAddrFromAddrPort(w.endpoint)
		if there {
			c.what = fmt.Sprintf("its endpoint is %s, not %s", h.endpoint, w.endpoint)
		}
	}
	more, less := without(w.allowed, h.allowed), without(h.allowed, w.allowed)
	switch {
	case prune && len(less) > 0:
		// Only all of them can be taken away.
		c.cfg.ReplaceAllowedIPs, more = true, without(w.allowed, nil)
		fallthrough
	case len(more) > 0:
		for _, p := range more {
			c.cfg.AllowedIPs = append(c.cfg.AllowedIPs, net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())})
		}
		if there {
			c.what = fmt.Sprintf("its ranges are %v, not %v", without(h.allowed, nil), without(w.allowed, nil))
		}
	}
	keepalive := greeting
	if h.met || !there {
		keepalive = 0
	}
	greets := h.keepalive != keepalive
	if greets {
		c.cfg.PersistentKeepaliveInterval = &keepalive
	}
	// One that has gone meanwhile must not come back for a greeting's sake.
	c.cfg.UpdateOnly = c.what == ""
	return c, greets || c.what != ""
}

// without lists what is in a and not in b, in order.
func without(a, b map[netip.Prefix]bool) []netip.Prefix {
	var out []netip.Prefix
	for p := range a {
		if !b[p] {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}
