package routes

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// Route is one of ours in the main table.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop in the overlay; invalid for a peer's own address.
	Via netip.Addr
	// MTU is 0 for the device's.
	MTU         int
	Unreachable bool
}

// Key is what the kernel tells routes apart by: a backstop and a route may have
// the same destination.
type Key struct {
	Dst         netip.Prefix
	Unreachable bool
}

// Table is what there is in the main table, or is to be.
type Table struct {
	Routes map[Key]Route
	// Foreign are destinations that have a route of somebody else's with the
	// same preference.
	Foreign map[netip.Prefix]string
}

// NewTable is empty.
func NewTable() Table { return Table{map[Key]Route{}, map[netip.Prefix]string{}} }

// Want makes the table of a goal: each peer's address on the device, its ranges
// by that address. mtu is the device's, in bytes.
func Want(g overlay.Goal, mtu int) Table {
	t := NewTable()
	for _, p := range g.Peers {
		narrow := 0
		if p.MTU < mtu {
			narrow = p.MTU
		}
		host := netip.PrefixFrom(p.Host, p.Host.BitLen())
		t.Routes[Key{host, false}] = Route{Dst: host, MTU: narrow}
		for _, c := range p.CIDRs {
			t.Routes[Key{c, false}] = Route{Dst: c, Via: p.Host, MTU: narrow}
		}
	}
	for _, c := range g.Backstop {
		t.Routes[Key{c, true}] = Route{Dst: c, Unreachable: true}
	}
	return t
}

// Op is one change.
type Op struct {
	Del   bool
	Route Route
}

func (o Op) String() string {
	verb := "set"
	if o.Del {
		verb = "remove"
	}
	switch {
	case o.Route.Unreachable:
		return fmt.Sprintf("%s unreachable %s", verb, o.Route.Dst)
	case o.Route.Via.IsValid():
		return fmt.Sprintf("%s route %s via %s", verb, o.Route.Dst, o.Route.Via)
	}
	return fmt.Sprintf("%s route %s", verb, o.Route.Dst)
}

// Plan returns what is to be set, and with prune what is to go, each in the order
// in which it can be done.
func Plan(want, have Table, prune bool) (set, gone []Op) {
	for _, k := range slices.SortedFunc(maps.Keys(want.Routes), byKey) {
		if h, ok := have.Routes[k]; !ok || h != want.Routes[k] {
			set = append(set, Op{Route: want.Routes[k]})
		}
	}
	if !prune {
		return set, nil
	}
	for _, k := range slices.SortedFunc(maps.Keys(have.Routes), byKey) {
		if _, ok := want.Routes[k]; !ok {
			gone = append(gone, Op{Del: true, Route: have.Routes[k]})
		}
	}
	return set, gone
}

// byKey puts peers' own addresses, by which their ranges are reached, first.
func byKey(a, b Key) int {
	return cmp.Or(cmp.Compare(b.Dst.Bits(), a.Dst.Bits()), a.Dst.Addr().Compare(b.Dst.Addr()))
}
