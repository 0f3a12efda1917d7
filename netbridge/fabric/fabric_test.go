package fabric

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"
)

func settings() Settings {
	s := Settings{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/12")}
	s.Complete()
	return s
}

func record(host, ep string, cidrs ...string) Node {
	n := Node{Version: 1, Host: netip.MustParseAddr(host), Endpoint: netip.MustParseAddr(ep), MTU: 1450}
	for _, c := range cidrs {
		n.CIDRs = append(n.CIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func TestDefaultsAreValid(t *testing.T) {
	if err := settings().Validate(); err != nil {
		t.Fatal(err)
	}
}

// Clients with kube-proxy reach the cluster's DNS by its Service (docs/networking.md).
func TestTheNameServerMayBeAService(t *testing.T) {
	s := settings()
	s.DNS.Servers = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for want, change := range map[string]func(*Settings){
		"burstCIDR 10.96.0.0/16 and serviceCIDR 10.96.0.0/12 overlap": func(s *Settings) { s.BurstCIDR = netip.MustParsePrefix("10.96.0.0/16") },
		"burstCIDR: 10.77.1.0/16 has bits behind its prefix":          func(s *Settings) { s.BurstCIDR = netip.MustParsePrefix("10.77.1.0/16") },
		"blockBits: 16 is not between":                                func(s *Settings) { s.BlockBits = 16 },
		"vni: 16777216":                                               func(s *Settings) { s.VNI = 1 << 24 },
		"port: 70000":                                                 func(s *Settings) { s.Port = 70000 },
		`backend: "ipip"`:                                             func(s *Settings) { s.Backend = "ipip" },
		"clusterCIDRs[0]: fd00::/64 is no IPv4 range":                 func(s *Settings) { s.ClusterCIDRs[0] = netip.MustParsePrefix("fd00::/64") },
	} {
		s := settings()
		change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestBlocksAndHosts(t *testing.T) {
	s := settings()
	if s.Blocks() != 512 || s.Block(511).String() != "10.77.255.128/25" || s.Block(3).String() != "10.77.1.128/25" {
		t.Error(s.Blocks(), s.Block(511), s.Block(3))
	}
	if s.Hosts() != 4094 || s.Host(0).String() != "10.78.0.1" || s.Host(4093).String() != "10.78.15.254" {
		t.Error(s.Hosts(), s.Host(0), s.Host(4093))
	}
	if g := Gateway(s.Block(3)); g.String() != "10.77.1.129" {
		t.Error(g)
	}
}

func TestWhatARecordMayAnnounce(t *testing.T) {
	s := settings()
	for _, c := range []struct {
		id   ID
		n    Node
		want string
	}{
		{"nomad/a", record("10.78.0.1", "192.0.2.1", "10.77.1.0/25"), ""},
		{"k8s/a", record("10.78.0.1", "192.0.2.1", "10.244.3.0/24"), ""},
		{"k8s/a", record("10.78.0.1", "192.0.2.1", "10.244.0.0/16"), ""},
		{"nomad/a", record("10.78.0.1", "192.0.2.1", "10.244.3.0/24"), "no block of burstCIDR"},
		{"nomad/a", record("10.78.0.1", "192.0.2.1", "10.77.1.0/24"), "no block of burstCIDR"},
		{"nomad/a", record("10.78.0.1", "192.0.2.1", "0.0.0.0/0"), "no block of burstCIDR"},
		{"k8s/a", record("10.78.0.1", "192.0.2.1", "10.77.1.0/25"), "in none of clusterCIDRs"},
		{"k8s/a", record("10.78.0.1", "192.0.2.1", "10.0.0.0/8"), "in none of clusterCIDRs"},
		{"nomad/a", record("10.79.0.1", "192.0.2.1", "10.77.1.0/25"), "outside hostCIDR"},
		{"nomad/a", record("10.78.0.1", "10.77.0.9", "10.77.1.0/25"), "in the overlay itself"},
		{"nomad/a", record("10.78.0.1", "127.0.0.1", "10.77.1.0/25"), "no IPv4 unicast"},
		{"vm/a", record("10.78.0.1", "192.0.2.1", "10.77.1.0/25"), "is not nomad/ID"},
		{"nomad/a/b", record("10.78.0.1", "192.0.2.1", "10.77.1.0/25"), "is not nomad/ID"},
	} {
		err := s.Allowed(c.id, c.n)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: want %q, got %v", c.id, c.n, c.want, err)
		}
	}
	small := record("10.78.0.1", "192.0.2.1", "10.77.1.0/25")
	small.MTU = 576
	if err := s.Allowed("nomad/a", small); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Error(err)
	}
}

// A record that wants another's addresses never takes the traffic away from who
// has it, whatever the IDs' order.
func TestTheFollowedKeepTheirAddresses(t *testing.T) {
	s := settings()
	owner, thief := record("10.78.0.2", "192.0.2.2", "10.77.1.0/25"), record("10.78.0.1", "192.0.2.1", "10.77.1.0/25")
	accepted, refused := s.Accept(map[ID]Node{"nomad/a": thief, "nomad/b": owner}, map[ID]Node{"nomad/b": owner})
	if _, ok := accepted["nomad/b"]; !ok || len(accepted) != 1 || !strings.Contains(refused["nomad/a"].Error(), "overlaps 10.77.1.0/25 of nomad/b") {
		t.Error(accepted, refused)
	}
	// A followed one that changes its record to another's addresses is the thief.
	turned := record("10.78.0.1", "192.0.2.1", "10.77.9.0/25")
	accepted, _ = s.Accept(map[ID]Node{"nomad/a": thief, "nomad/b": owner}, map[ID]Node{"nomad/a": turned, "nomad/b": owner})
	if _, ok := accepted["nomad/b"]; !ok || len(accepted) != 1 {
		t.Error(accepted)
	}
	// A machine that was set up anew has its old endpoint.
	accepted, refused = s.Accept(map[ID]Node{"nomad/a": owner, "nomad/c": record("10.78.0.3", "192.0.2.2", "10.77.2.0/25")}, map[ID]Node{"nomad/a": owner})
	if len(accepted) != 2 {
		t.Error(refused)
	}
}

// keyOf is a public key in base64: 32 bytes.
func keyOf(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func TestWireGuardNeedsKeys(t *testing.T) {
	s := settings()
	s.Backend = BackendWireGuard
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	n := record("10.78.0.1", "192.0.2.1", "10.77.1.0/25")
	for key, want := range map[string]string{
		"": "no WireGuard key", keyOf(0): "is no WireGuard key", keyOf(1)[:40]: "is no WireGuard key", "not base64": "is no WireGuard key", keyOf(1): "",
	} {
		n.WG = key
		if err := s.Allowed("nomad/a", n); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", key, want, err)
		}
	}
	if err := settings().Allowed("nomad/a", record("10.78.0.1", "192.0.2.1", "10.77.1.0/25")); err != nil {
		t.Error("VXLAN needs none:", err)
	}
}

// Another key under the same ID is not followed, the old one is; and nobody gets
// another's by having the same key.
func TestKeysArePinned(t *testing.T) {
	s := settings()
	s.Backend = BackendWireGuard
	a, b := record("10.78.0.1", "192.0.2.1", "10.77.1.0/25"), record("10.78.0.2", "192.0.2.2", "10.77.2.0/25")
	a.WG, b.WG = keyOf(1), keyOf(2)
	forged, emptied, moved := a, a, a
	forged.WG, forged.Endpoint = keyOf(9), b.Endpoint
	emptied.WG = ""
	moved.Endpoint = netip.MustParseAddr("192.0.2.77")
	for name, n := range map[string]Node{"forged": forged, "without a key": emptied} {
		accepted, refused := s.Accept(map[ID]Node{"nomad/a": n, "nomad/b": b}, map[ID]Node{"nomad/a": a})
		if !accepted["nomad/a"].Equal(a) || len(accepted) != 2 {
			t.Errorf("%s: %v", name, accepted)
		}
		if err := refused["nomad/a"]; err == nil || !strings.Contains(err.Error(), "has changed") || !strings.Contains(err.Error(), "delete nodes/nomad/a") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if accepted, refused := s.Accept(map[ID]Node{"nomad/a": moved}, map[ID]Node{"nomad/a": a}); !accepted["nomad/a"].Equal(moved) || len(refused) > 0 {
		t.Error("with the same key all else may change:", accepted, refused)
	}
	if accepted, _ := s.Accept(map[ID]Node{"nomad/a": forged}, nil); !accepted["nomad/a"].Equal(forged) {
		t.Error("who is not followed has no key that could have changed:", accepted)
	}
	twin := record("10.78.0.3", "192.0.2.3", "10.77.3.0/25")
	twin.WG = b.WG
	if accepted, refused := s.Accept(map[ID]Node{"nomad/a": twin, "nomad/b": b}, map[ID]Node{"nomad/b": b}); len(accepted) != 1 || !strings.Contains(refused["nomad/a"].Error(), "key is nomad/b's") {
		t.Error(accepted, refused)
	}
}

func TestMAC(t *testing.T) {
	a, b := ID("nomad/a").MAC(), ID("nomad/b").MAC()
	if a.String() == b.String() || len(a) != 6 || a[0]&3 != 2 {
		t.Errorf("%s and %s are to differ, local and unicast", a, b)
	}
}
