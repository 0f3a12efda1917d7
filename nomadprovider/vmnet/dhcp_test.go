package vmnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

// serveEnv has this program be a companion's server, with that file of name servers:
// it works on threads of its own, and has a namespace as a process alone.
const serveEnv = "VMNET_SERVE"

func TestMain(m *testing.M) {
	file := os.Getenv(serveEnv)
	if file == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Serve(ctx, file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// client is a DHCP client on a guest's card.
type client struct {
	t    *testing.T
	conn *net.UDPConn
}

func newClient(t *testing.T, n *netlab.NS) *client {
	t.Helper()
	c := &client{t: t}
	n.Must(func() (err error) {
		c.conn, err = server4.NewIPv4UDPConn("eth0", &net.UDPAddr{Port: dhcpv4.ClientPort})
		return err
	})
	t.Cleanup(func() { c.conn.Close() })
	return c
}

// ask sends a message until it is answered, as clients do; nil for no answer.
func (c *client) ask(m *dhcpv4.DHCPv4, tries int) *dhcpv4.DHCPv4 {
	c.t.Helper()
	buf := make([]byte, 2048)
	for range tries {
		if _, err := c.conn.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}); err != nil {
			c.t.Fatal(err)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if n, _, err := c.conn.ReadFrom(buf); err == nil {
			answer, err := dhcpv4.FromBytes(buf[:n])
			if err != nil {
				c.t.Fatal(err)
			}
			if answer.TransactionID == m.TransactionID {
				return answer
			}
		}
	}
	return nil
}

func TestDHCP(t *testing.T) {
	b := newBed(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("# one\nnameserver 127.0.0.53\nnameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The server stands before there is a bridge, as in a companion that has just
	// started.
	p := b.pod(t, 11)
	serving := exec.Command(os.Args[0])
	serving.Env = append(os.Environ(), serveEnv+"="+resolv)
	serving.Stderr = os.Stderr
	if err := p.Start(serving); err != nil {
		t.Fatal(err)
	}
	v := b.unset(t, 12) // a neighbour that is not to hear of it
	guest := netlab.New(t, "guest")
	netlab.Join(p, tapName, guest, "eth0")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 11}
	guest.Run("ip link set eth0 address " + mac.String())
	p.Must(func() error { return Hand(mac) })

	c := newClient(t, guest)
	discover, err := dhcpv4.NewDiscovery(mac)
	if err != nil {
		t.Fatal(err)
	}
	offer := c.ask(discover, 10)
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.1.0.11" {
		t.Fatalf("offer %v", offer)
	}
	request, err := dhcpv4.NewRequestFromOffer(offer)
	if err != nil {
		t.Fatal(err)
	}
	ack := c.ask(request, 4)
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		t.Fatalf("ack %v", ack)
	}
	mtu, _ := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options)
	if ones, _ := ack.SubnetMask().Size(); ones != 24 || mtu != 1450 || len(ack.Router()) != 1 || ack.Router()[0].String() != bedClient ||
		ack.IPAddressLeaseTime(0) != forEver*time.Second || !ack.ServerIdentifier().Equal(self.AsSlice()) || ack.ClasslessStaticRoute() != nil {
		t.Errorf("%s", ack.Summary())
	}
	if dns := ack.DNS(); len(dns) != 1 || dns[0].String() != "10.96.0.10" || ack.DomainName() != "default.svc.cluster.local" ||
		!slices.Equal(ack.DomainSearch().Labels, []string{"default.svc.cluster.local", "svc.cluster.local"}) {
		t.Errorf("name servers: %s", ack.Summary())
	}
	request.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 1, 0, 99}))
	if nak := c.ask(request, 4); nak == nil || nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("another address is not refused: %v", nak)
	}
	request.UpdateOption(dhcpv4.OptServerIdentifier(net.IP{10, 1, 0, 1}))
	if answer := c.ask(request, 1); answer != nil {
		t.Errorf("a request to another server is answered: %s", answer.Summary())
	}
	// The neighbour has no server, and does not hear this one.
	if answer := newClient(t, v.guest).ask(discover, 1); answer != nil {
		t.Errorf("another pod's guest is answered: %s", answer.Summary())
	}
	if err := serving.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := serving.Wait(); err != nil {
		t.Error(err)
	}
}

func TestClassless(t *testing.T) {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{MTU: 1500}}
	gw := netip.MustParseAddr
	for name, tc := range map[string]struct {
		up   uplink
		want []string
	}{
		"plain":      {uplink{address: netip.MustParsePrefix("10.0.0.2/24"), gateway: gw("10.0.0.1")}, nil},
		"no gateway": {uplink{address: netip.MustParsePrefix("10.0.0.2/24")}, nil},
		"gateway elsewhere": {uplink{address: netip.MustParsePrefix("10.0.0.2/32"), gateway: gw("169.254.1.1")},
			[]string{"169.254.1.1/32 0.0.0.0", "0.0.0.0/0 169.254.1.1"}},
		"told": {uplink{address: netip.MustParsePrefix("10.0.0.2/32"), gateway: gw("169.254.1.1"), routes: []route{
			{netip.MustParsePrefix("10.9.0.0/16"), gw("169.254.1.1")}, {netip.MustParsePrefix("169.254.1.1/32"), netip.Addr{}}}},
			[]string{"169.254.1.1/32 0.0.0.0", "10.9.0.0/16 169.254.1.1", "0.0.0.0/0 169.254.1.1"}},
	} {
		tc.up.link = link
		var got []string
		for _, r := range classless(&tc.up) {
			got = append(got, r.Dest.String()+" "+r.Router.String())
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestResolvers(t *testing.T) {
	if servers, searches := resolvers(filepath.Join(t.TempDir(), "none")); servers != nil || searches != nil {
		t.Error(servers, searches)
	}
}
