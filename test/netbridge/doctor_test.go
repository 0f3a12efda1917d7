package netbridge

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// doctor runs netbridge doctor on the host.
func (h *host) doctor(t *testing.T, args ...string) report.Report {
	t.Helper()
	var out []byte
	err := h.Do(func() (err error) {
		args := append([]string{"doctor", "--config", h.config, "-o", "json", "--cni-conf-dir", h.runtimeNetworks(t), "--flannel-env", "/none"}, args...)
		out, err = exec.Command(program, args...).Output()
		return err
	})
	var r report.Report
	if e := json.Unmarshal(out, &r); e != nil {
		t.Fatalf("netbridge doctor on %s: %v %v\n%s", h.Name, err, e, out)
	}
	var exit *exec.ExitError
	if failed := r.Err() != nil; failed != (errors.As(err, &exit) && exit.ExitCode() == 1) {
		t.Errorf("netbridge doctor on %s ends with %v: %v", h.Name, err, r.Err())
	}
	return r
}

// runtimeNetworks is what a Kubernetes node has for its runtime.
func (h *host) runtimeNetworks(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(h.dir, "net.d")
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "10-cluster.conflist"), []byte(`{"name":"cluster","plugins":[{"type":"bridge"}]}`), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// failed are the checks that failed.
func failed(r report.Report) (out []string) {
	for _, c := range r.Checks {
		if c.Result == report.Fail {
			out = append(out, c.What)
		}
	}
	return out
}

func forwarding(h *host, value string) {
	h.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0) })
}

// TestDoctor injects one fault after the other: each makes its check fail and no
// other.
func TestDoctor(t *testing.T) {
	b := newACLBed(t)
	nom1, nom2, k8s1 := b.hosts[0], b.hosts[1], b.hosts[2]
	// One that has no agent yet.
	fresh := b.host("nomad/nom3", 1, 13, b.withToken)
	healthy := func() {
		t.Helper()
		for _, h := range b.hosts {
			if r := h.doctor(t); len(failed(r)) > 0 {
				t.Errorf("%s, which is well: %+v", h.Name, r)
			}
		}
	}
	healthy()
	before := fresh.Run("ip -o link") + fresh.Run("nft list ruleset")
	fresh.doctor(t)
	if after := fresh.Run("ip -o link") + fresh.Run("nft list ruleset"); after != before {
		t.Errorf("it has left something:\n%s\nwas\n%s", after, before)
	}
	text, err := nom2.Try(program, "doctor", "--config", nom2.config)
	t.Logf("%s%v", text, err)

	write := func(file, data string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(h *host, line string) func() { return func() { h.Run(line) } }
	flannel := filepath.Join(t.TempDir(), "subnet.env")
	write(flannel, "FLANNEL_NETWORK=10.250.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n")
	var socket net.PacketConn
	var restore func()
	for _, c := range []struct {
		name        string
		on          *host
		inject, end func()
		want        []string
		args        []string
	}{
		{"a route into burstCIDR", nom2, run(nom2, "ip route add 10.77.200.0/24 via 192.168.102.1"), run(nom2, "ip route del 10.77.200.0/24"),
			[]string{"burstCIDR 10.77.0.0/16"}, nil},
		{"an address in serviceCIDR", fresh, run(fresh, "ip addr add 10.96.7.1/24 dev lo"), run(fresh, "ip addr del 10.96.7.1/24 dev lo"),
			[]string{"serviceCIDR 10.96.0.0/16"}, nil},
		{"another's nb0", fresh, run(fresh, "ip link add nb0 type bridge"), run(fresh, "ip link del nb0"), []string{"device nb0"}, nil},
		{"another's bridge", fresh, func() { fresh.Run("ip link add nbr0 type bridge"); fresh.Run("ip addr add 172.30.0.1/16 dev nbr0") }, run(fresh, "ip link del nbr0"),
			[]string{"bridge nbr0"}, nil},
		{"another VXLAN at the port", fresh, run(fresh, "ip link add vx9 type vxlan id 9 dstport 8473"), run(fresh, "ip link del vx9"), []string{"UDP port 8473"}, nil},
		{"a socket at the port", fresh, func() {
			fresh.Must(func() (err error) {
				socket, err = net.ListenPacket("udp4", ":8473")
				return err
			})
		}, func() { _ = socket.Close() }, []string{"UDP port 8473"}, nil},
		{"a narrow underlay", fresh, run(fresh, "ip link set eth0 mtu 1300"), run(fresh, "ip link set eth0 mtu 1500"), []string{"underlay MTU"}, nil},
		{"no forwarding", nom2, func() { nom2.kill(); forwarding(nom2, "0") }, func() { nom2.start(); nom2.settled() }, []string{"ip_forward"}, nil},
		{"UDP dropped between two hosts", nom1, run(nom1, "iptables -I INPUT -p udp --dport 8473 -s 192.168.102.12 -j DROP"),
			run(nom1, "iptables -D INPUT -p udp --dport 8473 -s 192.168.102.12 -j DROP"), []string{"path to nomad/nom2"}, nil},
		{"a peer's firewall that lets no TCP in", nom1, run(nom2, "iptables -I INPUT -i nb0 -p tcp -j DROP"), run(nom2, "iptables -D INPUT -i nb0 -p tcp -j DROP"), nil, nil},
		{"a block that is another's", nom1, func() { restore = b.steal(t, nom1); nom1.kill() }, func() { restore(); nom1.start(); nom1.settled() }, []string{"own claims"}, nil},
		{"flannel has another range", k8s1, func() {}, func() {}, []string{"flannel's network 10.250.0.0/16"}, []string{"--flannel-env", flannel}},
		{"a wrong token", nom2, func() { write(b.tokenFile, "11111111-2222-3333-4444-555555555555") }, func() { write(b.tokenFile, b.token.SecretID) }, []string{"token"}, nil},
		{"a token that may not write", nom2, func() { b.allow(`key_prefix "` + fabricKeys + `" { policy = "read" }`) }, func() { b.allow(allRights(t)) }, []string{"token writes"}, nil},
		{"a token that does not read all", nom2, func() { b.allow(allRights(t) + ` key "` + fabricKeys + `nodes/.keep" { policy = "deny" }`) }, func() { b.allow(allRights(t)) },
			[]string{"token reads"}, nil},
		{"no Consul", nom2, b.consul.Stop, b.consul.Up, []string{"leader"}, nil},
	} {
		c.inject()
		if r := c.on.doctor(t, c.args...); !slices.Equal(failed(r), c.want) {
			t.Errorf("%s: failed are %q, want %q\n%+v", c.name, failed(r), c.want, r)
		}
		c.end()
	}
	for _, h := range []*host{nom1, nom2, k8s1} {
		h.until("peace", func(st agent.Status) bool { return st.Consul == "" && st.Incomplete == "" && len(st.Drift) == 0 })
	}
	healthy()
	if st, err := nom1.status(); err != nil || len(st.Peers) != 2 || st.ID != fabric.ID("nomad/nom1") {
		t.Errorf("%+v %v", st, err)
	}
}
