package vxlan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/overlaytest"
)

func lines(ops []op) string {
	var s []string
	for _, o := range ops {
		s = append(s, o.String())
	}
	return strings.Join(s, "\n")
}

func TestPlanSetsWhatARouteNeedsFirst(t *testing.T) {
	g := overlay.Goal{Peers: []overlay.Peer{overlaytest.Peer(1, "10.77.1.0/25")}, Backstop: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}
	w := want(g, 1450)
	if got := lines(plan(w, newTable(), true)); got != `set neighbour 10.78.0.1 at 02:00:00:00:00:01
set forwarding of 02:00:00:00:00:01 to 192.0.2.1
set route 10.78.0.1/32
set route 10.77.1.0/25 via 10.78.0.1
set unreachable 10.77.0.0/16` {
		t.Error(got)
	}
	if got := plan(w, w, true); len(got) > 0 {
		t.Error(lines(got))
	}
	none := want(overlay.Goal{}, 1450)
	if got := lines(plan(none, w, true)); got != `remove route 10.78.0.1/32
remove route 10.77.1.0/25 via 10.78.0.1
remove unreachable 10.77.0.0/16
remove forwarding of 02:00:00:00:00:01 to 192.0.2.1
remove neighbour 10.78.0.1 at 02:00:00:00:00:01` {
		t.Error(got)
	}
	if got := plan(none, w, false); len(got) > 0 {
		t.Error("without prune nothing goes:", lines(got))
	}
}

func TestPlanChangesOnlyWhatDiffers(t *testing.T) {
	have := want(overlay.Goal{Peers: []overlay.Peer{overlaytest.Peer(1, "10.77.1.0/25"), overlaytest.Peer(2, "10.77.2.0/25")}}, 1450)
	moved := overlaytest.Peer(1, "10.77.1.0/25")
	moved.Endpoint = netip.MustParseAddr("192.0.2.100")
	w := want(overlay.Goal{Peers: []overlay.Peer{moved, overlaytest.Peer(2, "10.77.2.0/25")}}, 1450)
	if got := lines(plan(w, have, true)); got != "set forwarding of 02:00:00:00:00:01 to 192.0.2.100" {
		t.Error(got)
	}
	narrow := overlaytest.Peer(2, "10.77.2.0/25")
	narrow.MTU = 1350
	w = want(overlay.Goal{Peers: []overlay.Peer{overlaytest.Peer(1, "10.77.1.0/25"), narrow}}, 1450)
	if got := lines(plan(w, have, true)); got != "set route 10.78.0.2/32\nset route 10.77.2.0/25 via 10.78.0.2" {
		t.Error(got)
	}
}
