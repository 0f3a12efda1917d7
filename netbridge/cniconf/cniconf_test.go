package cniconf

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config", "netbridge.conflist")
	c := Config{Bridge: "nbr0", MTU: 1450, Blocks: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/25")}, DataDir: "/var/lib/netbridge/ipam"}
	for _, want := range []bool{true, false} {
		if wrote, err := Write(file, c); err != nil || wrote != want {
			t.Errorf("wrote %v, want %v: %v", wrote, want, err)
		}
	}
	list, err := libcni.ConfListFromFile(file)
	if err != nil || list.Name != Network || len(list.Plugins) != 2 {
		t.Fatalf("%+v %v", list, err)
	}
	c.HostPorts = true
	if wrote, err := Write(file, c); err != nil || !wrote {
		t.Error(wrote, err)
	}
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), `"portmap"`) {
		t.Errorf("%s %v", data, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
		t.Error(left)
	}
	c.Blocks = nil
	if _, err := Write(file, c); err == nil {
		t.Error("a network without a block was written")
	}
}
