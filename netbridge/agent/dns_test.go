package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

func TestWhoIsAskedForWhat(t *testing.T) {
	a := &Agent{Config: &Config{DNS: DNS{Address: netip.MustParseAddr("169.254.20.53"), ConsulDomain: "consul", ConsulAddress: "127.0.0.1:8600", Upstream: []string{"192.0.2.1:53"}}}}
	look := func(want string) {
		t.Helper()
		zones, err := a.zones()
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, z := range zones {
			lines = append(lines, fmt.Sprint(z.Name, z.Domains, z.Ranges, z.Servers))
		}
		if got := strings.Join(lines, "\n"); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
	}
	// Before Consul has told the settings, the cluster's domain is not known.
	const rest = "consul[consul.] [] [127.0.0.1:8600]\nupstream[.] [] [192.0.2.1:53]"
	look(rest)
	a.state.Settings = fabric.Settings{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
	a.state.Settings.DNS.Servers = []netip.Addr{netip.MustParseAddr("10.244.1.5")}
	a.state.Settings.Complete()
	look("cluster[cluster.local.] [10.244.0.0/16 10.77.0.0/16 10.96.0.0/16] [10.244.1.5:53]\n" + rest)
}

func TestTheMachinesServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("search example.org\nnameserver 169.254.20.53\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Its own would be asked for ever.
	got, err := machineServers(file, netip.MustParseAddr("169.254.20.53"))
	if err != nil || strings.Join(got, " ") != "192.0.2.1:53 [2001:db8::1]:53" {
		t.Error(got, err)
	}
	if _, err := machineServers(file+"-none", netip.Addr{}); err == nil {
		t.Error("a file that is not there")
	}
}
