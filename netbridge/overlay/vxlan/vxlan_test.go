package vxlan

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/overlaytest"
)

func host(t *testing.T) (*overlaytest.Host, *Backend) {
	t.Helper()
	n := overlaytest.NewHost(t, "bridge")
	var b *Backend
	n.Must(func() (err error) {
		b, err = New(Config{Name: "nb0", VNI: 20034, Port: 8473, Endpoint: overlaytest.Endpoint,
			Host: overlaytest.Addr, MAC: fabric.ID("nomad/host").MAC()}, hclog.NewNullLogger())
		return err
	})
	return n, b
}

func TestTheKernelGetsThere(t *testing.T) {
	n, b := host(t)
	g := overlaytest.Goal()
	c := n.Ensure(b, g)
	if !c.Device || c.Set != 2+2+5+1 || c.Gone != 0 {
		t.Errorf("%+v", c)
	}
	n.Shows(map[string]string{
		"mtu 1450":          "ip link show nb0",
		"vxlan id 20034":    "ip -d link show nb0",
		"dstport 8473":      "ip -d link show nb0",
		"nolearning":        "ip -d link show nb0",
		"inet 10.78.0.9/32": "ip addr show nb0",
		"10.77.1.0/25 via 10.78.0.1 dev nb0 proto 76 onlink": "ip route",
		"unreachable 10.77.0.0/16 proto 76":                  "ip route",
		"lladdr 02:00:00:00:00:02 PERMANENT":                 "ip neigh show dev nb0",
		"02:00:00:00:00:02 dst 192.0.2.2 self permanent":     "bridge fdb show dev nb0",
	})
	// A range without a peer must not leave by the default route.
	if out, err := n.Try("ip", "route", "get", "10.77.200.1"); err == nil {
		t.Error("a range that nobody has goes to", out)
	}
	if c := n.Ensure(b, g); c.Any() {
		t.Errorf("a second time changes %+v", c)
	}
}

// An agent that starts finds all of it, and the device is the same one.
func TestAdoption(t *testing.T) {
	n, b := host(t)
	n.Ensure(b, overlaytest.Goal())
	before := n.Run("ip -o link show nb0")
	var again *Backend
	n.Must(func() (err error) {
		again, err = New(b.cfg, hclog.NewNullLogger())
		return err
	})
	if c := n.Ensure(again, overlaytest.Goal()); c.Any() {
		t.Errorf("%+v", c)
	}
	if after := n.Run("ip -o link show nb0"); after != before {
		t.Errorf("%s\n%s", before, after)
	}
}

func TestPruning(t *testing.T) {
	n, b := host(t)
	n.Ensure(b, overlaytest.Goal())
	one := overlaytest.Goal()
	one.Peers = one.Peers[:1]
	one.Prune = false
	if c := n.Ensure(b, one); c.Any() {
		t.Errorf("without a complete list: %+v", c)
	}
	one.Prune = true
	if c := n.Ensure(b, one); c.Gone != 3+1+1 || c.Set != 0 {
		t.Errorf("%+v", c)
	}
	if out := n.Run("ip route") + n.Run("bridge fdb show dev nb0") + n.Run("ip neigh show dev nb0"); strings.Contains(out, "10.78.0.2") || strings.Contains(out, "192.0.2.2") {
		t.Error(out)
	}
}

// Other people's routes are neither removed nor replaced.
func TestForeignRoutes(t *testing.T) {
	n, b := host(t)
	n.Run("ip route add 10.77.2.0/25 via 192.0.2.77")
	n.Run("ip route add 10.200.0.0/16 via 192.0.2.78")
	if err := n.Refused(b, overlaytest.Goal()); !strings.Contains(err.Error(), "10.77.2.0/25") || !strings.Contains(err.Error(), "already") {
		t.Error(err)
	}
	out := n.Run("ip route")
	for _, want := range []string{"10.77.2.0/25 via 192.0.2.77", "10.200.0.0/16 via 192.0.2.78", "10.77.1.0/25 via 10.78.0.1", "10.77.3.0/25 via 10.78.0.2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
}

func TestADeviceOfSomebodyElse(t *testing.T) {
	n, b := host(t)
	n.Run("ip link add nb0 type bridge")
	if err := n.Refused(b, overlaytest.Goal()); !strings.Contains(err.Error(), "nb0 is a bridge of somebody else's") {
		t.Error(err)
	}
	if out := n.Run("ip -d link show nb0"); !strings.Contains(out, "bridge") {
		t.Error("it was removed")
	}
}

// What is touched is told within the second, and mended.
func TestWhatIsTouchedIsMended(t *testing.T) {
	n, b := host(t)
	n.Ensure(b, overlaytest.Goal())
	watched := n.Watch(b)
	for _, c := range []struct{ line, want string }{
		{"ip link del nb0", "device was removed"},
		{"ip route del 10.77.1.0/25", "route was removed"},
		{"ip link set nb0 down", "set down"},
		{"ip link set nb0 address 02:11:11:11:11:11", "device was changed"},
		{"ip link set nb0 mtu 1400", "device was changed"},
		{"ip neigh del 10.78.0.1 dev nb0", "neighbour or forwarding entry"},
		{"bridge fdb del 02:00:00:00:00:01 dev nb0 self", "neighbour or forwarding entry"},
	} {
		watched.Forget()
		began := time.Now()
		n.Run(c.line)
		watched.Await(c.want)
		told := time.Since(began)
		n.Ensure(b, overlaytest.Goal())
		mended := time.Since(began)
		n.Settled(b, overlaytest.Goal())
		if told > time.Second {
			t.Errorf("%s was told after %s", c.line, told)
		}
		t.Logf("%s: told after %s, mended after %s", c.line, told, mended)
	}
}

func TestManyPeers(t *testing.T) {
	n, b := host(t)
	for _, count := range []int{300, 1000} {
		g := overlaytest.Many(count)
		began := time.Now()
		c := n.Ensure(b, g)
		first := time.Since(began)
		began = time.Now()
		if c := n.Ensure(b, g); c.Any() {
			t.Errorf("%+v", c)
		}
		t.Logf("%d peers: %d changes in %s, adopted in %s", count, c.Set, first, time.Since(began))
	}
}
