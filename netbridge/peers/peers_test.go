package peers

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

func nodes(n int) map[fabric.ID]fabric.Node {
	m := map[fabric.ID]fabric.Node{}
	for i := range n {
		m[fabric.ID(fmt.Sprintf("nomad/%02d", i))] = fabric.Node{
			Version: 1, Host: netip.AddrFrom4([4]byte{10, 78, 0, byte(i + 1)}), Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), MTU: 1450,
			CIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 25)},
		}
	}
	return m
}

// view is node 0 with nine peers, which it follows.
func view() *View {
	v := &View{Self: "nomad/00", Own: nodes(1)["nomad/00"], Hold: DefaultHold}
	v.Settings.Complete()
	v.Apply(time.Unix(0, 0), registry.List{Nodes: nodes(10)})
	return v
}

func TestNothingIsTakenAwayAfterAnIncompleteList(t *testing.T) {
	v := view()
	r := v.Apply(time.Unix(1, 0), registry.List{Incomplete: errors.New("no leader")})
	if len(r.Peers) != 9 || r.Prune {
		t.Error(len(r.Peers), r.Prune)
	}
	// What is new is followed all the same.
	r = v.Apply(time.Unix(2, 0), registry.List{Nodes: nodes(12), Incomplete: errors.New("own record missing")})
	if len(r.Peers) != 11 || r.Prune {
		t.Error(len(r.Peers), r.Prune)
	}
}

func TestAMissingPeerGoesAfterACompleteList(t *testing.T) {
	v := view()
	l := nodes(10)
	delete(l, "nomad/05")
	r := v.Apply(time.Unix(1, 0), registry.List{Nodes: l})
	if len(r.Peers) != 8 || !r.Prune || len(r.Held) != 0 {
		t.Error(len(r.Peers), r.Prune, r.Held)
	}
}

func TestManyMissingAreHeldForAWhile(t *testing.T) {
	v := view()
	start := time.Unix(1000, 0)
	r := v.Apply(start, registry.List{Nodes: nodes(3)})
	if len(r.Peers) != 9 || len(r.Held) != 7 || !r.Again.Equal(start.Add(DefaultHold)) {
		t.Fatal(len(r.Peers), r.Held, r.Again)
	}
	// One of them comes back: it is no longer on probation.
	r = v.Apply(start.Add(time.Minute), registry.List{Nodes: nodes(4)})
	if len(r.Held) != 6 {
		t.Error(r.Held)
	}
	r = v.Apply(start.Add(DefaultHold), registry.List{Nodes: nodes(4)})
	if len(r.Peers) != 3 || len(r.Held) != 0 || !r.Again.IsZero() {
		t.Error(len(r.Peers), r.Held, r.Again)
	}
}

// After a list that was not complete, even one missing peer is waited for.
func TestDoubt(t *testing.T) {
	v := view()
	v.Apply(time.Unix(1, 0), registry.List{Nodes: map[fabric.ID]fabric.Node{}, Incomplete: errors.New("the sentinel is missing")})
	l := nodes(10)
	delete(l, "nomad/05")
	start := time.Unix(2, 0)
	if r := v.Apply(start, registry.List{Nodes: l}); len(r.Peers) != 9 || len(r.Held) != 1 {
		t.Error(len(r.Peers), r.Held)
	}
	// Another one that goes later is no matter of doubt.
	delete(l, "nomad/06")
	if r := v.Apply(start.Add(time.Minute), registry.List{Nodes: l}); len(r.Peers) != 8 || len(r.Held) != 1 {
		t.Error(len(r.Peers), r.Held)
	}
	if r := v.Apply(start.Add(DefaultHold), registry.List{Nodes: l}); len(r.Peers) != 7 || len(r.Held) != 0 {
		t.Error(len(r.Peers), r.Held)
	}
}

func TestAHeldPeerGivesWayToNobody(t *testing.T) {
	v := view()
	l := nodes(2)
	thief := nodes(10)["nomad/09"]
	thief.Host = netip.MustParseAddr("10.78.0.99")
	l["nomad/thief"] = thief
	r := v.Apply(time.Unix(1, 0), registry.List{Nodes: l})
	if _, ok := r.Peers["nomad/09"]; !ok || r.Refused["nomad/thief"] == nil {
		t.Error(r)
	}
}

func TestNobodyTakesOwnAddresses(t *testing.T) {
	v := view()
	l := nodes(10)
	thief := v.Own
	thief.Host = netip.MustParseAddr("10.78.0.99")
	l["nomad/-first"] = thief
	r := v.Apply(time.Unix(1, 0), registry.List{Nodes: l})
	if len(r.Peers) != 9 || r.Refused["nomad/-first"] == nil {
		t.Error(r)
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "peers.json")
	s := &State{Fabric: "prod", ID: "nomad/00", Own: nodes(1)["nomad/00"], Peers: nodes(10)}
	s.Settings.Complete()
	s.Settings.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if none, err := Load(file, "prod", "nomad/00"); none != nil || err != nil {
		t.Error(none, err)
	}
	if err := s.Save(file); err != nil {
		t.Fatal(err)
	}
	back, err := Load(file, "prod", "nomad/00")
	if err != nil || !s.Equal(*back) {
		t.Errorf("%+v %v", back, err)
	}
	if _, err := Load(file, "prod", "nomad/01"); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte(`{"fabric":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file, "prod", "nomad/00"); err == nil {
		t.Error("a broken file is taken for none")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".peers-*")); len(left) > 0 {
		t.Error(left)
	}
}
