package wireguard

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/wireguard/userspace"
)

const carrierEnv = "NETBRIDGE_TEST_CARRIES"

// TestMain makes this binary the process that carries a device, where a test has
// started it as one.
func TestMain(m *testing.M) {
	if name := os.Getenv(carrierEnv); name != "" {
		fmt.Fprintln(os.Stderr, userspace.Run(context.Background(), name, hclog.Default()))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// device is this run's: sockets in /var/run/wireguard are the whole machine's.
var device = fmt.Sprint("nbt", os.Getpid())

func host(t *testing.T) (*netlab.NS, *Backend) {
	t.Helper()
	netlab.Root(t, "ip")
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	n := netlab.New(t, "host")
	n.Run("ip link add eth0 type veth peer name far0")
	n.Run("ip link set far0 up")
	n.Run("ip link set eth0 up")
	n.Run("ip addr add 192.0.2.9/24 dev eth0")
	n.Run("ip route add default via 192.0.2.1")
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	var b *Backend
	n.Must(func() (err error) {
		b, err = New(Config{Name: device, Key: private, Port: port, Endpoint: netip.MustParseAddr("192.0.2.9"), Host: netip.MustParseAddr("10.78.0.9")}, hclog.NewNullLogger())
		return err
	})
	return n, b
}

// carry starts the process that carries the device.
func carry(t *testing.T, n *netlab.NS) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), carrierEnv+"="+device)
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := n.Try("ip", "link", "show", device); err == nil {
			return cmd
		}
		if time.Now().After(limit) {
			t.Fatal("no device")
		}
	}
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_ = os.Remove("/var/run/wireguard/" + device + ".sock")
}

func ensure(t *testing.T, n *netlab.NS, b *Backend, g overlay.Goal) overlay.Changes {
	t.Helper()
	var c overlay.Changes
	n.Must(func() (err error) {
		c, err = b.Ensure(g)
		return err
	})
	return c
}

func drift(t *testing.T, n *netlab.NS, b *Backend, g overlay.Goal) []string {
	t.Helper()
	var out []string
	n.Must(func() (err error) {
		out, err = b.Drift(g)
		return err
	})
	return out
}

func goal() overlay.Goal {
	return overlay.Goal{Prune: true, Peers: []overlay.Peer{goalPeer(1, "10.77.1.0/25"), goalPeer(2, "10.77.2.0/25", "10.77.3.0/25")},
		Backstop: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}
}

func TestTheDeviceGetsThere(t *testing.T) {
	n, b := host(t)
	g := goal()
	var err error
	n.Must(func() error {
		_, err = b.Ensure(g)
		return nil
	})
	if err != nil && !strings.Contains(err.Error(), "run netbridge wireguard --device "+device) {
		t.Error("without a kernel's and a process's device:", err)
	}
	if err == nil {
		t.Skip("this kernel has WireGuard")
	}
	carry(t, n)
	c := ensure(t, n, b, g)
	if !c.Device || c.Set != 2+5+1 || c.Gone != 0 {
		t.Errorf("%+v", c)
	}
	for want, from := range map[string]string{
		"mtu 1440":          "ip link show " + device,
		"inet 10.78.0.9/32": "ip addr show " + device,
		"10.77.1.0/25 via 10.78.0.1 dev " + device + " proto 76 onlink": "ip route",
		"unreachable 10.77.0.0/16 proto 76":                             "ip route",
	} {
		if out := n.Run(from); !strings.Contains(out, want) {
			t.Errorf("%s has no %q:\n%s", from, want, out)
		}
	}
	client, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d, err := client.Device(device)
	if err != nil || d.PrivateKey != b.cfg.Key || d.ListenPort != port || len(d.Peers) != 2 {
		t.Errorf("%+v %v", d, err)
	}
	if c := ensure(t, n, b, g); c.Any() || c.Again {
		t.Errorf("a second time changes %+v", c)
	}
	if d, err := client.Device(device); err != nil || d.Peers[0].PersistentKeepaliveInterval != greeting {
		t.Errorf("the second time greets: %+v %v", d, err)
	}
	// An agent that starts finds all of it.
	var again *Backend
	n.Must(func() (err error) {
		again, err = New(b.cfg, hclog.NewNullLogger())
		return err
	})
	if c := ensure(t, n, again, g); c.Any() {
		t.Errorf("adoption changes %+v", c)
	}
	if d := drift(t, n, again, g); len(d) > 0 {
		t.Error(d)
	}

	one := goal()
	one.Peers = one.Peers[:1]
	one.Prune = false
	if c := ensure(t, n, b, one); c.Any() {
		t.Errorf("without a complete list: %+v", c)
	}
	one.Prune = true
	if c := ensure(t, n, b, one); c.Gone != 3+1 || c.Set != 0 {
		t.Errorf("%+v", c)
	}
	if d, err = client.Device(device); err != nil || len(d.Peers) != 1 || d.Peers[0].PublicKey != key(1) {
		t.Errorf("%+v %v", d, err)
	}
	if out := n.Run("ip route"); strings.Contains(out, "10.78.0.2") {
		t.Error(out)
	}
}

// Of a process that ends and of another that begins the agent is told, and finds
// its socket.
func TestAnotherProcess(t *testing.T) {
	n, b := host(t)
	cmd := carry(t, n)
	ensure(t, n, b, goal())
	changed := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.Must(func() error { return b.Watch(ctx, func(what string) { changed <- what }) })
	await := func(want string) {
		t.Helper()
		for {
			select {
			case what := <-changed:
				if strings.Contains(what, want) {
					return
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%q is not told", want)
			}
		}
	}
	_ = cmd.Process.Kill()
	await("device was removed")
	_ = cmd.Wait()
	began := time.Now()
	again := exec.Command(os.Args[0])
	again.Env = append(os.Environ(), carrierEnv+"="+device)
	if err := n.Start(again); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(again) })
	await("device was set down")
	if c := ensure(t, n, b, goal()); !c.Device {
		t.Errorf("%+v", c)
	}
	if d := drift(t, n, b, goal()); len(d) > 0 {
		t.Error(d)
	}
	t.Logf("all there %s after the start", time.Since(began))
	// Two for one device would be one too many.
	second := exec.Command(os.Args[0])
	second.Env = again.Env
	var out []byte
	n.Must(func() error { out, _ = second.CombinedOutput(); return nil })
	if !strings.Contains(string(out), "in use") {
		t.Errorf("%s", out)
	}
}

func TestADeviceOfSomebodyElse(t *testing.T) {
	n, b := host(t)
	for _, kind := range []string{"bridge", "vxlan id 20034 dstport 8473"} {
		n.Run("ip link add " + device + " type " + kind)
		var err error
		n.Must(func() error {
			_, err = b.Ensure(goal())
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "of somebody else's") {
			t.Error(err)
		}
		n.Run("ip link del " + device)
	}
	// A tun that nobody answers for.
	n.Run("ip tuntap add " + device + " mode tun")
	var err error
	n.Must(func() error {
		_, err = b.Ensure(goal())
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "nothing of WireGuard's answers") {
		t.Error(err)
	}
}

func TestManyPeers(t *testing.T) {
	n, b := host(t)
	carry(t, n)
	g := overlay.Goal{Prune: true}
	for i := range 1000 {
		p := goalPeer(1)
		p.Host = netip.AddrFrom4([4]byte{10, 78, 4 + byte(i>>8), byte(i)})
		p.Endpoint = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		p.Key = wgtypes.Key{1, byte(i >> 8), byte(i)}.String()
		p.CIDRs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 80 + byte(i>>8), byte(i), 0}), 25)}
		g.Peers = append(g.Peers, p)
	}
	began := time.Now()
	c := ensure(t, n, b, g)
	first := time.Since(began)
	began = time.Now()
	if c := ensure(t, n, b, g); c.Any() {
		t.Errorf("%+v", c)
	}
	t.Logf("%d changes in %s, adopted in %s", c.Set, first, time.Since(began))
}
