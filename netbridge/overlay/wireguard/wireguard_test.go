package wireguard

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/overlaytest"
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

func host(t *testing.T) (*overlaytest.Host, *Backend) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	n := overlaytest.NewHost(t)
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	var b *Backend
	n.Must(func() (err error) {
		b, err = New(Config{Name: device, Key: private, Port: port, Endpoint: overlaytest.Endpoint, Host: overlaytest.Addr}, hclog.NewNullLogger())
		return err
	})
	return n, b
}

// carry starts the process that carries the device.
func carry(t *testing.T, n *overlaytest.Host) *exec.Cmd {
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

func TestTheDeviceGetsThere(t *testing.T) {
	n, b := host(t)
	g := overlaytest.Goal()
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
	c := n.Ensure(b, g)
	if !c.Device || c.Set != 2+5+1 || c.Gone != 0 {
		t.Errorf("%+v", c)
	}
	n.Shows(map[string]string{
		"mtu 1440":          "ip link show " + device,
		"inet 10.78.0.9/32": "ip addr show " + device,
		"10.77.1.0/25 via 10.78.0.1 dev " + device + " proto 76 onlink": "ip route",
		"unreachable 10.77.0.0/16 proto 76":                             "ip route",
	})
	client, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	d, err := client.Device(device)
	if err != nil || d.PrivateKey != b.cfg.Key || d.ListenPort != port || len(d.Peers) != 2 {
		t.Errorf("%+v %v", d, err)
	}
	if c := n.Ensure(b, g); c.Any() || c.Again {
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
	if c := n.Ensure(again, g); c.Any() {
		t.Errorf("adoption changes %+v", c)
	}
	n.Settled(again, g)

	one := overlaytest.Goal()
	one.Peers = one.Peers[:1]
	one.Prune = false
	if c := n.Ensure(b, one); c.Any() {
		t.Errorf("without a complete list: %+v", c)
	}
	one.Prune = true
	if c := n.Ensure(b, one); c.Gone != 3+1 || c.Set != 0 {
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
	n.Ensure(b, overlaytest.Goal())
	watched := n.Watch(b)
	_ = cmd.Process.Kill()
	watched.Await("device was removed")
	_ = cmd.Wait()
	began := time.Now()
	again := exec.Command(os.Args[0])
	again.Env = append(os.Environ(), carrierEnv+"="+device)
	if err := n.Start(again); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(again) })
	watched.Await("device was set down")
	if c := n.Ensure(b, overlaytest.Goal()); !c.Device {
		t.Errorf("%+v", c)
	}
	n.Settled(b, overlaytest.Goal())
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
		if err := n.Refused(b, overlaytest.Goal()); !strings.Contains(err.Error(), "of somebody else's") {
			t.Error(err)
		}
		n.Run("ip link del " + device)
	}
	// A tun that nobody answers for.
	n.Run("ip tuntap add " + device + " mode tun")
	if err := n.Refused(b, overlaytest.Goal()); !strings.Contains(err.Error(), "nothing of WireGuard's answers") {
		t.Error(err)
	}
}

func TestManyPeers(t *testing.T) {
	n, b := host(t)
	carry(t, n)
	g := overlaytest.Many(1000)
	began := time.Now()
	c := n.Ensure(b, g)
	first := time.Since(began)
	began = time.Now()
	if c := n.Ensure(b, g); c.Any() {
		t.Errorf("%+v", c)
	}
	t.Logf("%d changes in %s, adopted in %s", c.Set, first, time.Since(began))
}
