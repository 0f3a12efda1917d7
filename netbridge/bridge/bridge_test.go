package bridge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

func TestEnsure(t *testing.T) {
	netlab.Root(t, "ip")
	n := netlab.New(t, "host")
	c := Config{Name: "nbr0", MTU: 1450, MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/28")}}
	ensure := func(want bool) {
		t.Helper()
		n.Must(func() error {
			changed, err := Ensure(c)
			if changed != want {
				t.Errorf("changed: %v, want %v", changed, want)
			}
			return err
		})
	}
	ensure(true)
	ensure(false)
	// Its MTU is its own, whatever hangs on it.
	n.Run("ip link add pod0 mtu 1450 type veth peer name far0")
	n.Run("ip link set pod0 master nbr0")
	n.Run("ip link del pod0")
	ensure(false)
	c.Also = netip.MustParseAddr("169.254.20.53")
	ensure(true)
	ensure(false)
	c.Blocks = append(c.Blocks, netip.MustParsePrefix("10.77.9.16/28"))
	ensure(true)
	n.Run("ip addr add 10.99.0.1/24 dev nbr0")
	n.Run("ip link set nbr0 down mtu 1400")
	ensure(true)
	ensure(false)
	out := n.Run("ip addr show nbr0") + n.Run("ip route")
	for _, want := range []string{"mtu 1450", "02:01:02:03:04:05", "inet 10.77.1.1/28", "inet 10.77.9.17/28", "10.77.9.16/28 dev nbr0", "inet 169.254.20.53/32"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "10.99.0.1") {
		t.Error(out)
	}
	n.Run("ip link del nbr0")
	n.Run("ip link add nbr0 type veth peer name far0")
	n.Must(func() error {
		if _, err := Ensure(c); err == nil || !strings.Contains(err.Error(), "nbr0 is a veth of somebody else's") {
			t.Error(err)
		}
		return nil
	})
}

// The CNI plugin makes the bridge where a pod comes before the agent: that one takes
// the address of a port. It gets its own, and the pods that are there are told.
func TestABridgeThatThePluginMade(t *testing.T) {
	netlab.Root(t, "ip")
	host, first, pod := netlab.New(t, "host"), netlab.New(t, "first"), netlab.New(t, "pod")
	netlab.Join(host, "pod0", first, "eth0")
	netlab.Join(host, "pod1", pod, "eth0")
	for _, line := range []string{
		"ip link set pod0 address 02:00:00:00:00:01", "ip link set pod1 address 02:00:00:00:00:02", "ip link add nbr0 type bridge",
		"ip link set pod0 master nbr0", "ip link set pod1 master nbr0", "ip link set nbr0 up", "ip addr add 10.77.1.1/28 dev nbr0",
	} {
		host.Run(line)
	}
	pod.Run("ip addr add 10.77.1.2/28 dev eth0")
	reached := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := pod.Dial(ctx, "tcp4", "10.77.1.1:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s the gateway does not answer: %v", when, err)
		}
	}
	reached("before the agent")
	c := Config{Name: "nbr0", MTU: 1450, MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/28")}}
	host.Must(func() error {
		_, err := Ensure(c)
		return err
	})
	reached("with an address of its own")
	host.Run("ip link del pod0")
	host.Run("ip link del pod1")
	if out := host.Run("ip link show nbr0"); !strings.Contains(out, "02:01:02:03:04:05") {
		t.Errorf("its address goes with its ports: %s", out)
	}
}
