package guard

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

func prefixes(s ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, c := range s {
		p = append(p, netip.MustParsePrefix(c))
	}
	return p
}

// rules are a Kubernetes node's, with the pod range as the cluster's.
func rules() Rules {
	return Rules{
		Device: "nb0", Cluster: prefixes("10.244.0.0/16"), Burst: netip.MustParsePrefix("10.77.0.0/16"), Host: netip.MustParsePrefix("10.78.0.0/20"),
		Port: 8473, Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")},
	}
}

// router is a node between a pod of the cluster and a pod far away. The far side
// is reached by a plain wire in place of the overlay: the rules are of addresses.
type router struct {
	*netlab.NS
	pod, far *netlab.NS
	guard    *Guard
	file     string
}

func lab(t *testing.T) *router {
	t.Helper()
	netlab.Root(t, "ip", "nft", "iptables")
	r := &router{NS: netlab.New(t, "router"), pod: netlab.New(t, "pod"), far: netlab.New(t, "far"), file: filepath.Join(t.TempDir(), "rules.json")}
	netlab.Join(r.NS, "cni0", r.pod, "eth0")
	netlab.Join(r.NS, "nb0", r.far, "eth0")
	r.Run("ip addr add 10.244.1.1/24 dev cni0")
	r.Run("ip addr add 10.78.0.1/24 dev nb0")
	r.Run("ip route add 10.77.0.0/16 via 10.78.0.2")
	r.pod.Run("ip addr add 10.244.1.2/24 dev eth0")
	r.pod.Run("ip route add default via 10.244.1.1")
	r.far.Run("ip addr add 10.78.0.2/24 dev eth0")
	r.far.Run("ip addr add 10.77.1.2/32 dev eth0")
	r.far.Run("ip route add default via 10.78.0.1")
	r.Must(func() error { return exec.Command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward").Run() })
	r.Must(func() (err error) {
		r.guard, err = New(r.file, hclog.NewNullLogger())
		return err
	})
	return r
}

func (r *router) ensure(t *testing.T) Changes {
	t.Helper()
	var c Changes
	r.Must(func() (err error) {
		c, err = r.guard.Ensure(t.Context(), rules(), true)
		return err
	})
	return c
}

// source is whom the listener at to sees when from calls it.
func source(t *testing.T, from, to *netlab.NS, address, local string) string {
	t.Helper()
	var server net.PacketConn
	to.Must(func() (err error) {
		server, err = net.ListenPacket("udp4", address)
		return err
	})
	defer server.Close()
	var client net.Conn
	from.Must(func() (err error) {
		laddr := &net.UDPAddr{IP: net.ParseIP(local)}
		client, err = net.DialUDP("udp4", laddr, server.LocalAddr().(*net.UDPAddr))
		return err
	})
	defer client.Close()
	if _, err := client.Write([]byte("who")); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, seen, err := server.ReadFrom(make([]byte, 10))
	if err != nil {
		return "nobody"
	}
	host, _, _ := net.SplitHostPort(seen.String())
	return host
}

func (r *router) sources(t *testing.T) (out, in string) {
	t.Helper()
	return source(t, r.pod, r.far, "10.77.1.2:0", "10.244.1.2"), source(t, r.far, r.pod, "10.244.1.2:0", "10.77.1.2")
}

// flannel masquerades what leaves the cluster, older ones what enters it, too.
func (r *router) flannel() {
	r.Run("iptables -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully")
	r.Run("iptables -t nat -A POSTROUTING ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE")
}

func TestSourcesAreKept(t *testing.T) {
	r := lab(t)
	r.flannel()
	if out, in := r.sources(t); out != "10.78.0.1" || in != "10.244.1.1" {
		t.Fatalf("the lab does not masquerade: %s %s", out, in)
	}
	r.ensure(t)
	check := func(what string) {
		t.Helper()
		if out, in := r.sources(t); out != "10.244.1.2" || in != "10.77.1.2" {
			t.Errorf("%s: the far pod sees %s, the near one %s", what, out, in)
		}
	}
	check("flannel's rules")
	r.Run("nft add table ip other")
	if out, err := r.Try("nft", "add chain ip other post { type nat hook postrouting priority srcnat - 5 ; }"); err != nil {
		t.Fatal(out)
	}
	r.Run("nft add rule ip other post masquerade")
	check("another table that masquerades")
	r.Run("iptables -t nat -I POSTROUTING 1 -j MASQUERADE")
	check("a rule in front of all others")
	r.Run("iptables -t nat -F")
	check("a flush of iptables' nat table")
	// What leaves for elsewhere is masqueraded as before.
	r.flannel()
	r.far.Run("ip addr add 203.0.113.5/32 dev eth0")
	r.Run("ip route add 203.0.113.5 via 10.78.0.2")
	if out := source(t, r.pod, r.far, "203.0.113.5:0", "10.244.1.2"); out != "10.78.0.1" {
		t.Errorf("outside the fabric the source is %s", out)
	}
}

// What a machine itself sends to a Service has the source that the way to the Service
// has, the underlay's, which peers do not let in: it gets the overlay's address.
func TestTheMachineCallsAService(t *testing.T) {
	r := lab(t)
	r.Run("ip link add eth0 type veth peer name out0")
	r.Run("ip link set out0 up")
	r.Run("ip link set eth0 up")
	r.Run("ip addr add 192.0.2.2/24 dev eth0")
	r.Run("ip route add default via 192.0.2.254")
	r.ensure(t)
	r.Run("nft add table ip proxy")
	if out, err := r.Try("nft", "add chain ip proxy out { type nat hook output priority -100 ; }"); err != nil {
		t.Fatal(out)
	}
	r.Run("nft add rule ip proxy out ip daddr 10.96.0.10 dnat to 10.77.1.2")
	var server net.PacketConn
	r.far.Must(func() (err error) {
		server, err = net.ListenPacket("udp4", "10.77.1.2:5353")
		return err
	})
	defer server.Close()
	r.Must(func() error {
		c, err := net.Dial("udp4", "10.96.0.10:5353")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("who"))
		return err
	})
	_ = server.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, seen, err := server.ReadFrom(make([]byte, 10))
	if err != nil || !strings.HasPrefix(seen.String(), "10.78.0.1:") {
		t.Errorf("the far pod sees %v, and takes the overlay's addresses alone: %v", seen, err)
	}
}

// Nothing is written twice, and what others do elsewhere is not ours.
func TestOnlyDriftIsWritten(t *testing.T) {
	r := lab(t)
	if c := r.ensure(t); !c.Written || c.Foreign {
		t.Errorf("%+v", c)
	}
	if c := r.ensure(t); c != (Changes{}) {
		t.Errorf("%+v", c)
	}
	r.Run("nft add table ip other")
	if c := r.ensure(t); c != (Changes{}) {
		t.Errorf("%+v", c)
	}
	for _, line := range []string{"nft flush chain ip netbridge nomasq", "nft delete table ip netbridge", "nft flush ruleset", "nft add rule ip netbridge mss counter"} {
		r.Run(line)
		if c := r.ensure(t); !c.Written || !c.Foreign {
			t.Errorf("%s: %+v", line, c)
		}
	}
	if out := r.Run("nft list ruleset"); strings.Contains(out, "mss counter") || !strings.Contains(out, "snat to ip saddr") {
		t.Error(out)
	}
}

// Peers come and go without a process, and without a rule being written.
func TestPeersComeAndGo(t *testing.T) {
	r := lab(t)
	r.ensure(t)
	before := r.Run("nft -a list chain ip netbridge tunnel")
	goal := rules()
	goal.Endpoints = nil
	for i := range 1200 {
		goal.Endpoints = append(goal.Endpoints, netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
	}
	set := func(look bool) (c Changes) {
		r.Must(func() (err error) {
			c, err = r.guard.Ensure(t.Context(), goal, look)
			return err
		})
		return c
	}
	began := time.Now()
	if c := set(false); c != (Changes{Peers: 1202}) {
		t.Errorf("%+v", c)
	}
	many := time.Since(began)
	goal.Endpoints = append(goal.Endpoints, netip.MustParseAddr("203.0.113.9"))
	began = time.Now()
	if c := set(false); c != (Changes{Peers: 1}) {
		t.Errorf("%+v", c)
	}
	t.Logf("1202 peers changed in %s, one more in %s", many, time.Since(began))
	if c := set(true); c != (Changes{}) {
		t.Errorf("a look at what is right: %+v", c)
	}
	out := r.Run("nft list set ip netbridge peers")
	if strings.Count(out, "198.18.") != 1200 || !strings.Contains(out, "203.0.113.9") || strings.Contains(out, "192.0.2.1") {
		t.Error(out)
	}
	if now := r.Run("nft -a list chain ip netbridge tunnel"); now != before {
		t.Errorf("rules were written:\n%s\n%s", before, now)
	}
	// What others do to the set is seen and mended; a table that is gone is written
	// anew even without a look.
	r.Run("nft flush set ip netbridge peers")
	r.Must(func() error {
		drift, err := r.guard.Drift(t.Context())
		if len(drift) != 1 || !strings.Contains(drift[0], "set peers") {
			t.Errorf("drift %v", drift)
		}
		return err
	})
	if c := set(true); c != (Changes{Foreign: true, Peers: 1201}) {
		t.Errorf("%+v", c)
	}
	r.Run("nft delete table ip netbridge")
	goal.Endpoints = goal.Endpoints[1:]
	if c := set(false); !c.Written || !c.Foreign {
		t.Errorf("%+v", c)
	}
	if out := r.Run("nft list set ip netbridge peers"); strings.Count(out, "198.18.") != 1199 {
		t.Error(out)
	}
}

// A new agent adopts the rules of the last one, unless somebody has touched them.
func TestAdoption(t *testing.T) {
	r := lab(t)
	r.ensure(t)
	again := func(written, foreign bool) {
		t.Helper()
		r.Must(func() (err error) {
			r.guard, err = New(r.file, hclog.NewNullLogger())
			return err
		})
		if c := r.ensure(t); c.Written != written || c.Foreign != foreign {
			t.Errorf("%+v", c)
		}
	}
	again(false, false)
	r.Run("nft flush chain ip netbridge nomasq")
	again(true, true)
	again(false, false)
	// After a boot there is none, and nobody has changed it.
	r.Run("nft delete table ip netbridge")
	again(true, false)
	if err := os.WriteFile(r.file, []byte(`{"applied":`), 0o600); err != nil {
		t.Fatal(err)
	}
	again(true, false)
}

// A flush is told, and connections that began in the gap are mended.
func TestAFlushIsToldAndMended(t *testing.T) {
	r := lab(t)
	r.ensure(t)
	told := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.Must(func() error { return r.guard.Watch(ctx, func(what string) { told <- what }) })
	r.flannel()
	for len(told) > 0 {
		<-told
	}
	began := time.Now()
	r.Run("nft flush ruleset")
	select {
	case <-told:
		t.Logf("told after %s", time.Since(began))
	case <-time.After(5 * time.Second):
		t.Fatal("a flush is not told")
	}
	r.flannel()
	// A connection that begins now has the wrong source...
	var server net.PacketConn
	r.far.Must(func() (err error) {
		server, err = net.ListenPacket("udp4", "10.77.1.2:0")
		return err
	})
	defer server.Close()
	var client net.Conn
	r.pod.Must(func() (err error) {
		client, err = net.Dial("udp4", server.LocalAddr().String())
		return err
	})
	defer client.Close()
	seen := func() string {
		if _, err := client.Write([]byte("who")); err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, from, err := server.ReadFrom(make([]byte, 10))
		if err != nil {
			return err.Error()
		}
		host, _, _ := net.SplitHostPort(from.String())
		return host
	}
	if s := seen(); s != "10.78.0.1" {
		t.Fatalf("the lab does not masquerade: %s", s)
	}
	// ... and the right one from the mending on.
	if c := r.ensure(t); !c.Written || c.Rebound == 0 {
		t.Errorf("%+v", c)
	}
	if s := seen(); s != "10.244.1.2" {
		t.Errorf("the source is still %s", s)
	}
}

// A policy that drops what is forwarded, as Docker sets it, does not stop pods.
func TestForwardPolicyDrop(t *testing.T) {
	r := lab(t)
	if c := r.ensure(t); c.Forward != 0 {
		t.Errorf("rules in iptables without need: %+v", c)
	}
	r.Run("iptables -P FORWARD DROP")
	if out, _ := r.sources(t); out != "nobody" {
		t.Fatalf("the lab does not drop: %s", out)
	}
	if c := r.ensure(t); c.Forward != 2 {
		t.Errorf("%+v", c)
	}
	if out, in := r.sources(t); out != "10.244.1.2" || in != "10.77.1.2" {
		t.Error(out, in)
	}
	if c := r.ensure(t); c.Forward != 0 {
		t.Errorf("again: %+v", c)
	}
}

// Only peers may send VXLAN, and nothing comes out of it that is not of the
// fabric.
func TestStrangersAreDropped(t *testing.T) {
	r := lab(t)
	r.ensure(t)
	r.far.Run("ip addr add 192.0.2.1/32 dev eth0")
	r.far.Run("ip addr add 192.0.2.66/32 dev eth0")
	r.Run("ip route add 192.0.2.0/24 via 10.78.0.2")
	// The inner rule would drop these addresses on nb0: look at the outer one alone.
	r.Run("nft flush chain ip netbridge inner")
	if s := source(t, r.far, r.NS, "10.78.0.1:8473", "192.0.2.1"); s != "192.0.2.1" {
		t.Errorf("a peer's packet: %s", s)
	}
	if s := source(t, r.far, r.NS, "10.78.0.1:8473", "192.0.2.66"); s != "nobody" {
		t.Errorf("a stranger's packet: %s", s)
	}
	r.ensure(t)
	if s := source(t, r.far, r.pod, "10.244.1.2:0", "192.0.2.66"); s != "nobody" {
		t.Errorf("a source from outside the fabric came out of the overlay: %s", s)
	}
}

// The MSS of a connection is what fits through the overlay.
func TestMSS(t *testing.T) {
	r := lab(t)
	r.ensure(t)
	r.Run("ip link set nb0 mtu 1350")
	var l net.Listener
	r.far.Must(func() (err error) {
		l, err = net.Listen("tcp4", "10.77.1.2:0")
		return err
	})
	defer l.Close()
	c, err := r.pod.Dial(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw, err := s.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var mss int
	_ = raw.Control(func(fd uintptr) { mss, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
	// 1350 less 40 of headers, less 12 of time stamps.
	if err != nil || mss > 1310 {
		t.Errorf("the far side sends segments of %d: %v", mss, err)
	}
}
