package overlaytest

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

var (
	// Endpoint is a host's address in the underlay, on eth0.
	Endpoint = netip.MustParseAddr("192.0.2.9")
	// Addr is its address in the overlay.
	Addr = netip.MustParseAddr("10.78.0.9")
)

// toldWithin bounds the wait for what a backend has to tell.
const toldWithin = 5 * time.Second

// Host is a namespace with an underlay device and a default route.
type Host struct {
	*netlab.NS
	t testing.TB
}

// NewHost makes one, or skips the test where that or a program is not to be had.
func NewHost(t testing.TB, programs ...string) *Host {
	t.Helper()
	netlab.Root(t, append(programs, "ip")...)
	h := &Host{netlab.New(t, "host"), t}
	h.Run("ip link add eth0 type veth peer name far0")
	h.Run("ip link set far0 up")
	h.Run("ip link set eth0 up")
	h.Run("ip addr add " + Endpoint.String() + "/24 dev eth0")
	h.Run("ip route add default via 192.0.2.1")
	return h
}

// Ensure brings the host to the goal.
func (h *Host) Ensure(b overlay.Backend, g overlay.Goal) (c overlay.Changes) {
	h.t.Helper()
	h.Must(func() (err error) {
		c, err = b.Ensure(g)
		return err
	})
	return c
}

// Refused is the error of an Ensure that must not succeed.
func (h *Host) Refused(b overlay.Backend, g overlay.Goal) error {
	h.t.Helper()
	err := h.Do(func() error {
		_, err := b.Ensure(g)
		return err
	})
	if err == nil {
		h.t.Fatal("the goal was reached")
	}
	return err
}

// Settled fails the test when the host is not at the goal.
func (h *Host) Settled(b overlay.Backend, g overlay.Goal) {
	h.t.Helper()
	var drift []string
	h.Must(func() (err error) {
		drift, err = b.Drift(g)
		return err
	})
	if len(drift) > 0 {
		h.t.Errorf("drift: %q", drift)
	}
}

// Shows fails the test when a command's output lacks what it is to have; the keys
// are what is wanted.
func (h *Host) Shows(want map[string]string) {
	h.t.Helper()
	for w, from := range want {
		if out := h.Run(from); !strings.Contains(out, w) {
			h.t.Errorf("%s has no %q:\n%s", from, w, out)
		}
	}
}

// Watched is what a backend has told since it watches.
type Watched struct {
	t    testing.TB
	told chan string
}

// Watch lets a backend watch until the test ends.
func (h *Host) Watch(b overlay.Backend) *Watched {
	h.t.Helper()
	w := &Watched{h.t, make(chan string, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	h.Must(func() error { return b.Watch(ctx, func(what string) { w.told <- what }) })
	return w
}

// Forget drops what was told and nobody asked for.
func (w *Watched) Forget() {
	for len(w.told) > 0 {
		<-w.told
	}
}

// Await waits until that is told.
func (w *Watched) Await(want string) {
	w.t.Helper()
	for late := time.After(toldWithin); ; {
		select {
		case what := <-w.told:
			if strings.Contains(what, want) {
				return
			}
		case <-late:
			w.t.Fatalf("%q is not told", want)
		}
	}
}
