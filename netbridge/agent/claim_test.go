package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// What pods have addresses of is claimed, also by a node that has lost what it knew of
// itself while Consul was emptied.
func TestHeldByAddresses(t *testing.T) {
	store, err := ipam.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	blocks := []netip.Prefix{netip.MustParsePrefix("10.77.3.128/25"), netip.MustParsePrefix("10.77.9.0/25")}
	for i, b := range []netip.Prefix{blocks[1], blocks[0], blocks[0]} {
		if _, _, err := store.Add(ipam.Owner{Container: string(rune('a' + i)), Interface: "eth0"}, []netip.Prefix{b}); err != nil {
			t.Fatal(err)
		}
	}
	a := &Agent{Config: &Config{Node: Node{Blocks: 1}}, store: store}
	q := registry.Request{Settings: fabric.Settings{BurstCIDR: netip.MustParsePrefix("10.77.0.0/16")}}
	q.Settings.Complete()
	if err := a.wants(fabric.Node{}, &q); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(q.Held, blocks) || q.Blocks != 2 {
		t.Errorf("held are %v, %d blocks are wanted", q.Held, q.Blocks)
	}
}

// A small block is scarce before it is full, a large one at nine tenths.
func TestScarce(t *testing.T) {
	for _, c := range []struct {
		block  string
		used   int
		scarce bool
	}{{"10.77.0.0/29", 3, false}, {"10.77.0.0/29", 4, true}, {"10.77.0.0/25", 111, false}, {"10.77.0.0/25", 112, true}} {
		if got := scarce(c.used, []netip.Prefix{netip.MustParsePrefix(c.block)}); got != c.scarce {
			t.Errorf("%d of %s: %v", c.used, c.block, got)
		}
	}
	if scarce(0, nil) {
		t.Error("a node without blocks asks for another")
	}
}
