package vxlan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
)

// table is what there is on the device, or is to be.
type table struct {
	// neighbours is overlay address -> MAC, forwarding is MAC -> endpoint.
	neighbours map[netip.Addr]string
	forwarding map[string]netip.Addr
	routes     routes.Table
}

func newTable() table {
	return table{map[netip.Addr]string{}, map[string]netip.Addr{}, routes.NewTable()}
}

// want makes the table of a goal. mtu is the device's.
func want(g overlay.Goal, mtu int) table {
	t := newTable()
	for _, p := range g.Peers {
		mac := p.MAC.String()
		t.neighbours[p.Host] = mac
		t.forwarding[mac] = p.Endpoint
	}
	t.routes = routes.Want(g, mtu)
	return t
}

// op is one change; kind says of what.
type op struct {
	del  bool
	kind kind
	addr netip.Addr // neighbour, or endpoint of the forwarding entry
	mac  string
	r    routes.Op
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
	return o.r.String()
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
	route, gone := routes.Plan(want.routes, have.routes, prune)
	for _, o := range route {
		set = append(set, op{kind: toRoute, r: o})
	}
	if !prune {
		return set
	}
	for _, o := range gone {
		unroute = append(unroute, op{del: true, kind: toRoute, r: o})
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
