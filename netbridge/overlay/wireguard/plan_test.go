package wireguard

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/overlaytest"
)

const port = 8473

func key(n byte) wgtypes.Key { return overlaytest.Key(n) }

// met are the peers of a goal after all have shaken hands.
func met(t *testing.T, peers ...overlay.Peer) map[wgtypes.Key]peer {
	t.Helper()
	have, _, err := want(overlay.Goal{Peers: peers}, port)
	if err != nil {
		t.Fatal(err)
	}
	for k, p := range have {
		p.met = true
		have[k] = p
	}
	return have
}

func lines(set, gone []change) string {
	var s []string
	for _, c := range append(set, gone...) {
		s = append(s, c.what)
	}
	return strings.Join(s, "\n")
}

func TestPlanLeavesAloneWhatIsRight(t *testing.T) {
	a, b := overlaytest.Peer(1, "10.77.1.0/25"), overlaytest.Peer(2, "10.77.2.0/25", "10.77.3.0/25")
	have := met(t, a, b)
	w, names, _ := want(overlay.Goal{Peers: []overlay.Peer{a, b}}, port)
	if set, gone := plan(w, have, names, true); len(set)+len(gone) > 0 {
		t.Error(lines(set, gone))
	}
	a.Endpoint = netip.MustParseAddr("192.0.2.77")
	b.CIDRs = append(b.CIDRs, netip.MustParsePrefix("10.77.9.0/25"))
	w, names, _ = want(overlay.Goal{Peers: []overlay.Peer{a, b}}, port)
	set, gone := plan(w, have, names, true)
	if got := lines(set, gone); got != `set peer nomad/b: its endpoint is 192.0.2.1:8473, not 192.0.2.77:8473
set peer nomad/c: its ranges are [10.77.2.0/25 10.77.3.0/25 10.78.0.2/32], not [10.77.2.0/25 10.77.3.0/25 10.77.9.0/25 10.78.0.2/32]` {
		t.Error(got)
	}
	// Of what is right nothing is sent: ranges that are set again belong to nobody
	// for a moment.
	if c := set[0].cfg; c.AllowedIPs != nil || c.ReplaceAllowedIPs || c.PersistentKeepaliveInterval != nil {
		t.Errorf("%+v", c)
	}
	if c := set[1].cfg; len(c.AllowedIPs) != 1 || c.AllowedIPs[0].String() != "10.77.9.0/25" || c.ReplaceAllowedIPs || c.Endpoint != nil {
		t.Errorf("%+v", c)
	}
}

func TestPlanTakesAwayOnlyWhenTold(t *testing.T) {
	a, b := overlaytest.Peer(1, "10.77.1.0/25"), overlaytest.Peer(2, "10.77.2.0/25", "10.77.3.0/25")
	have := met(t, a, b)
	b.CIDRs = b.CIDRs[:1]
	w, names, _ := want(overlay.Goal{Peers: []overlay.Peer{b}}, port)
	if set, gone := plan(w, have, names, false); len(set)+len(gone) > 0 {
		t.Error(lines(set, gone))
	}
	set, gone := plan(w, have, names, true)
	if got := lines(set, gone); len(set) != 1 || len(gone) != 1 || !gone[0].cfg.Remove || gone[0].cfg.PublicKey != key(1) {
		t.Error(got)
	}
	if c := set[0].cfg; !c.ReplaceAllowedIPs || len(c.AllowedIPs) != 2 {
		t.Errorf("%+v", c)
	}
}

// Who has not been met is greeted until then; that is not told as a difference.
func TestGreeting(t *testing.T) {
	a := overlaytest.Peer(1, "10.77.1.0/25")
	w, names, _ := want(overlay.Goal{Peers: []overlay.Peer{a}}, port)
	set, _ := plan(w, nil, names, true)
	if len(set) != 1 || set[0].what != "set peer nomad/b: it is new" || set[0].cfg.PersistentKeepaliveInterval != nil || set[0].cfg.UpdateOnly {
		t.Fatalf("%+v", set)
	}
	h := met(t, a)[key(1)]
	h.met = false
	set, _ = plan(w, map[wgtypes.Key]peer{key(1): h}, names, true)
	if len(set) != 1 || set[0].what != "" || *set[0].cfg.PersistentKeepaliveInterval != greeting || !set[0].cfg.UpdateOnly {
		t.Fatalf("%+v", set)
	}
	h.keepalive = greeting
	if set, _ := plan(w, map[wgtypes.Key]peer{key(1): h}, names, true); len(set) > 0 {
		t.Errorf("%+v", set)
	}
	h.met = true
	set, _ = plan(w, map[wgtypes.Key]peer{key(1): h}, names, true)
	if len(set) != 1 || set[0].what != "" || *set[0].cfg.PersistentKeepaliveInterval != 0 || !set[0].cfg.UpdateOnly {
		t.Errorf("%+v", set)
	}
}

func TestABadKeyDoesNotHoldUpTheOthers(t *testing.T) {
	bad := overlaytest.Peer(3, "10.77.3.0/25")
	bad.Key = "x"
	peers, _, err := want(overlay.Goal{Peers: []overlay.Peer{bad, overlaytest.Peer(1, "10.77.1.0/25")}}, port)
	if err == nil || !strings.Contains(err.Error(), "nomad/d") || len(peers) != 1 {
		t.Error(peers, err)
	}
}

func TestTheKeyIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wireguard.key")
	var keys sync.Map
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			k, err := LoadKey(file)
			if err != nil {
				t.Error(err)
			}
			keys.Store(k, true)
		})
	}
	all.Wait()
	n := 0
	keys.Range(func(k, _ any) bool { n++; return k != wgtypes.Key{} })
	if n != 1 {
		t.Errorf("%d keys", n)
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Error(st, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".key-*")); len(left) > 0 {
		t.Error(left)
	}
	const secret = "half a key"
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(file); err == nil || !strings.Contains(err.Error(), "remove it") || strings.Contains(err.Error(), secret) {
		t.Error(err)
	}
}
