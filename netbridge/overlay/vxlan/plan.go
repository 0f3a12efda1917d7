package vxlan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// route is one of ours in the main table.
type route struct {
	dst netip.Prefix
	// via is the next hop in the overlay; invalid for a peer's own address.
	via netip.Addr
	// mtu is 0 for the device's.
	mtu         int
	unreachable bool
}

// key is what the kernel tells routes apart by: a backstop and a route may have
// the same destination.
type key struct {
	dst         netip.Prefix
	unreachable bool
}

// table is what there is on the device, or is to be.
type table struct {
	// neighbours is overlay address -> MAC, forwarding is MAC -> endpoint.
	neighbours map[netip.Addr]string
	forwarding map[string]netip.Addr
	routes     map[key]route
	// foreign are destinations that have a route of somebody else's with the
	// same preference.
	foreign map[netip.Prefix]string
}

func newTable() table {
	return table{map[netip.Addr]string{}, map[string]netip.Addr{}, map[key]route{}, map[netip.Prefix]string{}}
}

// want makes the table of a goal. mtu is the device's.
func want(g overlay.Goal, mtu int) table {
	t := newTable()
	for _, p := range g.Peers {
		mac := p.MAC.String()
		t.neighbours[p.Host] = mac
		t.forwarding[mac] = p.Endpoint
		narrow := 0
		if p.MTU < mtu {
			narrow = p.MTU
		}
		host := netip.PrefixFrom(p.Host, p.Host.BitLen())
		t.routes[key{host, false}] = route{dst: host, mtu: narrow}
		for _, c := range p.CIDRs {
			t.routes[key{c, false}] = route{dst: c, via: p.Host, mtu: narrow}
		}
	}
	for _, c := range g.Backstop {
		t.routes[key{c, true}] = route{dst: c, unreachable: true}
	}
	return t
}

// op is one change. Its fields say which: exactly one of neighbour, endpoint and
// route is meant.
type op struct {
	del  bool
	kind kind
	addr netip.Addr // neighbour, or endpoint of the forwarding entry
	mac  string
	r    route
}

type kind int

const (
	neighbour kind = iota
	forward
	toRoute
)

func (o op) String() string {
	verb := "set"
	if o.del {
		verb = "remove"
	}
	switch o.kind {
	case neighbour:
		return fmt.Sprintf("%s neighbour %s at %s", verb, o.addr, o.mac)
	case forward:
		return fmt.Sprintf("%s forwarding of %s to %s", verb, o.mac, o.addr)
	}
	switch {
	case o.r.unreachable:
		return fmt.Sprintf("%s unreachable %s", verb, o.r.dst)
	case o.r.via.IsValid():
		return fmt.Sprintf("%s route %s via %s", verb, o.r.dst, o.r.via)
	}
	return fmt.Sprintf("%s route %s", verb, o.r.dst)
}

// plan returns the changes in the order in which no packet is sent to where it
// cannot go on: what a route needs is set before it and removed after it.
func plan(want, have table, prune bool) []op {
	var set, unroute, unset []op
	for _, a := range slices.SortedFunc(maps.Keys(want.neighbours), netip.Addr.Compare) {
		if have.neighbours[a] != want.neighbours[a] {
			set = append(set, op{kind: neighbour, addr: a, mac: want.neighbours[a]})
		}
	}
	for _, m := range slices.Sorted(maps.Keys(want.forwarding)) {
		if have.forwarding[m] != want.forwarding[m] {
			set = append(set, op{kind: forward, addr: want.forwarding[m], mac: m})
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(want.routes), byKey) {
		if h, ok := have.routes[k]; !ok || h != want.routes[k] {
			set = append(set, op{kind: toRoute, r: want.routes[k]})
		}
	}
	if !prune {
		return set
	}
	for _, k := range slices.SortedFunc(maps.Keys(have.routes), byKey) {
		if _, ok := want.routes[k]; !ok {
			unroute = append(unroute, op{del: true, kind: toRoute, r: have.routes[k]})
		}
	}
	for _, m := range slices.Sorted(maps.Keys(have.forwarding)) {
		if _, ok := want.forwarding[m]; !ok {
			unset = append(unset, op{del: true, kind: forward, addr: have.forwarding[m], mac: m})
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(have.neighbours), netip.Addr.Compare) {
		if _, ok := want.neighbours[a]; !ok {
			unset = append(unset, op{del: true, kind: neighbour, addr: a, mac: have.neighbours[a]})
		}
	}
	return slices.Concat(set, unroute, unset)
}

// byKey puts peers' own addresses, by which their ranges are reached, first.
func byKey(a, b key) int {
	return cmp.Or(cmp.Compare(b.dst.Bits(), a.dst.Bits()), a.dst.Addr().Compare(b.dst.Addr()))
}
