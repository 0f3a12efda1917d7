package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// A node whose block was another's gives addresses again when its network's file has
// the blocks that it has now, not before.
func TestTheFenceStandsUntilTheFileIsWritten(t *testing.T) {
	netlab.Root(t)
	dir := t.TempDir()
	store, err := ipam.Open(filepath.Join(dir, storeDir))
	if err != nil {
		t.Fatal(err)
	}
	configDir := filepath.Join(dir, "config")
	if err := os.WriteFile(configDir, nil, 0o600); err != nil { // no directory can be made there
		t.Fatal(err)
	}
	a := &Agent{
		Config: &Config{Node: Node{Kind: fabric.KindNomad}, StateDir: dir, Device: "nb0", CNI: CNI{ConfigDir: configDir, Bridge: "nbr0"}},
		Log:    hclog.NewNullLogger(), id: "nomad/one", store: store, metrics: newMetrics(), problems: map[string]string{},
		endpoint: netip.MustParseAddr("192.0.2.1"),
	}
	a.offers.changed = make(chan struct{}, 1)
	settings := fabric.Settings{}
	settings.Complete()
	block := netip.MustParsePrefix("10.77.9.0/25")
	own := fabric.Node{Version: fabric.Version, CIDRs: []netip.Prefix{block}, Host: netip.MustParseAddr("10.78.0.9"), Endpoint: a.endpoint, MTU: 1450}
	gives := func() error {
		_, _, err := store.Add(ipam.Owner{Container: "alloc", Interface: "eth0"}, own.CIDRs)
		return err
	}
	host := netlab.New(t, "host")
	take := func(c claimed) {
		host.Must(func() error {
			a.take(t.Context(), c)
			return nil
		})
	}
	take(claimed{err: fabric.ErrOwned})
	if err := gives(); !errors.Is(err, ipam.ErrFenced) {
		t.Fatalf("another's block: %v", err)
	}
	take(claimed{settings: settings, own: own})
	if err := gives(); !errors.Is(err, ipam.ErrFenced) || *a.offers.welcome.Load() {
		t.Errorf("with the former file: %v", err)
	}
	if err := os.Remove(configDir); err != nil {
		t.Fatal(err)
	}
	take(claimed{settings: settings, own: own})
	if err := gives(); err != nil || !*a.offers.welcome.Load() {
		t.Errorf("with the new file: %v", err)
	}
}
