package vmnet

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The companion is to stay small, so translate's names are not its own: a VM would
// make a card that nobody knows.
func TestOneNameForTheTap(t *testing.T) {
	if tapName != translate.VMTapDevice {
		t.Errorf("qemu opens %s, and %s is made", translate.VMTapDevice, tapName)
	}
}

// bed is a client with pods on one bridge, as Nomad's bridge network makes it.
type bed struct{ client *netlab.NS }

// vm is a pod whose tap is a veth to another namespace, which is its guest.
type vm struct {
	pod, guest *netlab.NS
	address    string
	mac        net.HardwareAddr
}

const bedClient = "10.1.0.1"

func newBed(t *testing.T) *bed {
	netlab.Root(t, "ip", "bridge")
	b := &bed{client: netlab.New(t, "client")}
	b.client.Run("ip link add pods type bridge")
	b.client.Run("ip address add " + bedClient + "/24 dev pods")
	b.client.Run("ip link set pods up")
	return b
}

// pod is one with an address, and without a guest as yet.
func (b *bed) pod(t *testing.T, n byte) *netlab.NS {
	t.Helper()
	p := netlab.New(t, fmt.Sprintf("pod%d", n))
	host := fmt.Sprintf("veth%d", n)
	netlab.Join(b.client, host, p, "eth0")
	b.client.Run("ip link set " + host + " mtu 1450 master pods")
	b.client.Run("bridge link set dev " + host + " hairpin on")
	p.Run(fmt.Sprintf("ip address add 10.1.0.%d/24 dev eth0", n))
	p.Run("ip link set eth0 mtu 1450")
	p.Run("ip route add default via " + bedClient)
	return p
}

// vm is a pod whose guest has the address already.
func (b *bed) vm(t *testing.T, n byte) *vm {
	t.Helper()
	v := b.unset(t, n)
	v.guest.Run("ip address add " + v.address + "/24 dev eth0")
	v.guest.Run("ip route add default via " + bedClient)
	return v
}

// unset is a pod whose guest has yet to ask for its address.
func (b *bed) unset(t *testing.T, n byte) *vm {
	t.Helper()
	v := &vm{pod: b.pod(t, n), guest: netlab.New(t, fmt.Sprintf("guest%d", n)), address: fmt.Sprintf("10.1.0.%d", n), mac: net.HardwareAddr{2, 0, 0, 0, 0, n}}
	netlab.Join(v.pod, tapName, v.guest, "eth0")
	v.guest.Run("ip link set eth0 address " + v.mac.String())
	v.pod.Must(func() error { return Hand(v.mac) })
	return v
}

// serve has a namespace tell callers their addresses, on any port, and echo lines.
func serve(t *testing.T, n *netlab.NS) (port string) {
	t.Helper()
	var l net.Listener
	n.Must(func() (err error) {
		l, err = net.Listen("tcp4", "0.0.0.0:0")
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintln(c, host)
				for s := bufio.NewScanner(c); s.Scan(); {
					fmt.Fprintln(c, s.Text())
				}
			}()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// call connects and says whom the other end sees.
func call(t *testing.T, from *netlab.NS, address string) (conn net.Conn, seen string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if conn, err = from.Dial(ctx, "tcp4", address); err != nil {
		return nil, "", err
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return conn, strings.TrimSpace(line), err
}

func mustSee(t *testing.T, from *netlab.NS, address, want string) net.Conn {
	t.Helper()
	conn, seen, err := call(t, from, address)
	if err != nil || seen != want {
		t.Fatalf("%s calls %s and is seen as %q, want %q: %v", from.Name, address, seen, want, err)
	}
	return conn
}

func TestHand(t *testing.T) {
	b := newBed(t)
	one, two, plain := b.vm(t, 11), b.vm(t, 12), b.pod(t, 13)
	onePort, twoPort, plainPort, clientPort := serve(t, one.guest), serve(t, two.guest), serve(t, plain), serve(t, b.client)

	mustSee(t, b.client, one.address+":"+onePort, bedClient)
	mustSee(t, plain, one.address+":"+onePort, "10.1.0.13")
	mustSee(t, two.guest, one.address+":"+onePort, two.address)
	mustSee(t, one.guest, "10.1.0.13:"+plainPort, one.address)
	mustSee(t, one.guest, bedClient+":"+clientPort, one.address)
	// From within the pod, by its address; each guest answers its own pod.
	open := mustSee(t, one.pod, one.address+":"+onePort, self.String())
	mustSee(t, two.pod, two.address+":"+twoPort, self.String())

	// A guest for which the link-local range is on its link asks for it there.
	one.guest.Run("ip route add 169.254.0.0/16 dev eth0")
	mustSee(t, one.pod, one.address+":"+onePort, self.String())
	if out := one.guest.Run("ip neigh show " + self.String()); !strings.Contains(out, neighbour(one.mac).String()) {
		t.Errorf("the guest has heard of %s: %q", self, out)
	}

	// Once more, while a connection is open.
	one.pod.Must(func() error { return Hand(one.mac) })
	if _, err := fmt.Fprintln(open, "still there"); err != nil {
		t.Error(err)
	}
	if line, err := bufio.NewReader(open).ReadString('\n'); line != "still there\n" {
		t.Errorf("an open connection says %q: %v", line, err)
	}
	mustSee(t, b.client, one.address+":"+onePort, bedClient)

	// There is no way out but to the guest: the answers would not come back.
	if _, _, err := call(t, one.pod, bedClient+":"+clientPort); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("the namespace calls others: %v", err)
	}
	one.pod.Must(func() error {
		for address, want := range map[string]string{"127.0.0.1:80": "10.1.0.11:80", "localhost:80": "10.1.0.11:80", "[::1]:80": "10.1.0.11:80", "10.9.9.9:80": "10.9.9.9:80", "odd": "odd"} {
			if got := Via(address); got != want {
				t.Errorf("%s is %s, want %s", address, got, want)
			}
		}
		return nil
	})
	plain.Must(func() error {
		if got := Via("127.0.0.1:80"); got != "127.0.0.1:80" {
			t.Errorf("a pod's own loopback is %s", got)
		}
		return nil
	})
}

// A guest that gives itself another address or MAC is not heard.
func TestSources(t *testing.T) {
	b := newBed(t)
	v := b.vm(t, 11)
	port := serve(t, b.client)
	mustSee(t, v.guest, bedClient+":"+port, v.address)
	v.guest.Run("ip address add 10.1.0.99/24 dev eth0")
	v.guest.Run("ip route change default via " + bedClient + " src 10.1.0.99")
	v.guest.Run("ip route add " + bedClient + "/32 dev eth0 src 10.1.0.99")
	if _, seen, err := call(t, v.guest, bedClient+":"+port); err == nil {
		t.Errorf("a guest is heard as %s", seen)
	}
	v.guest.Run("ip route del " + bedClient + "/32 dev eth0")
	mustSee(t, v.guest, bedClient+":"+port, v.address)
	v.guest.Run("ip link set eth0 address 02:00:00:00:00:99")
	v.guest.Run("ip neigh flush dev eth0")
	if _, seen, err := call(t, v.guest, bedClient+":"+port); err == nil {
		t.Errorf("a guest with another MAC is heard as %s", seen)
	}
}

// The tap outlives the one who opens it.
func TestTapStays(t *testing.T) {
	b := newBed(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
	p := b.pod(t, 11)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 11}
	p.Must(func() error { return Hand(mac) })
	carrier := func() bool { return strings.Contains(p.Run("ip link show "+tapName), "LOWER_UP") }
	for range 2 {
		if carrier() {
			t.Error("somebody has it open")
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = tapName
		// As qemu opens it (net/tap-linux.c, tap_open).
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_ONE_QUEUE, Queues: 1}
		p.Must(func() error { return netlink.LinkAdd(tap) })
		if !carrier() {
			t.Error("it was not opened")
		}
		p.Must(func() error { return Hand(mac) })
		for _, f := range tap.Fds {
			f.Close()
		}
	}
	if out := p.Run("ip link show " + tapName); !strings.Contains(out, "master "+bridgeName) || !strings.Contains(out, "mtu 1450") {
		t.Error(out)
	}
}

// What CNI has made passes its check, and is taken back with all that belongs to it.
func TestCNI(t *testing.T) {
	b := newBed(t)
	plugins := ""
	for _, dir := range append(filepath.SplitList(os.Getenv("CNI_PATH")), "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni") {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil && plugins == "" {
			plugins = dir
		}
	}
	if _, err := exec.LookPath("iptables"); plugins == "" || err != nil {
		t.Skip("needs CNI's plugins, and iptables")
	}
	list, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "bed", "plugins": [{"type": "bridge", "bridge": "cni9",
		"isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": %q,
		"ranges": [[{"subnet": "10.2.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{plugins}, t.TempDir(), nil)
	p := netlab.New(t, "pod")
	rt := &libcni.RuntimeConf{ContainerID: "one", NetNS: p.Path(), IfName: "eth0"}
	in := func(what string, f func(context.Context) error) {
		t.Helper()
		if err := b.client.Do(func() error { return f(t.Context()) }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	in("ADD", func(ctx context.Context) error {
		_, err := cni.AddNetworkList(ctx, list, rt)
		return err
	})
	in("CHECK", func(ctx context.Context) error { return cni.CheckNetworkList(ctx, list, rt) })
	p.Must(func() error { return Hand(net.HardwareAddr{2, 0, 0, 0, 0, 1}) })
	in("CHECK with a guest", func(ctx context.Context) error { return cni.CheckNetworkList(ctx, list, rt) })
	if out := b.client.Run("iptables-save -t nat"); !strings.Contains(out, "10.2.0.2") {
		t.Errorf("no masquerading: %s", out)
	}
	in("DEL", func(ctx context.Context) error { return cni.DelNetworkList(ctx, list, rt) })
	if out := b.client.Run("iptables-save -t nat"); strings.Contains(out, "10.2.0.2") {
		t.Errorf("masquerading is left: %s", out)
	}
}

func TestNoPod(t *testing.T) {
	netlab.Root(t)
	netlab.New(t, "empty").Must(func() error {
		if err := Hand(net.HardwareAddr{2, 0, 0, 0, 0, 1}); err == nil || !strings.Contains(err.Error(), "no device with an IPv4 address") {
			return fmt.Errorf("handed over what is not there: %v", err)
		}
		return nil
	})
}
