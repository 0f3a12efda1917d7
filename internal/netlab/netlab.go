package netlab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace and the thread that stands in it.
type NS struct {
	Name string

	t    testing.TB
	file *os.File
	work chan func()
}

// Root skips a test that may not make namespaces.
func Root(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s", p)
		}
	}
}

// New makes a namespace with its loopback up; it goes with the test.
func New(t testing.TB, name string) *NS { return stand(t, name, unix.CLONE_NEWNET) }

// Here is the namespace that this process was started in.
func Here(t testing.TB, name string) *NS { return stand(t, name, 0) }

func stand(t testing.TB, name string, flags int) *NS {
	t.Helper()
	n := &NS{Name: name, t: t, work: make(chan func())}
	ready := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Never unlocked: the thread is of no use to anybody else, and its end
		// kills the children that were started with Pdeathsig.
		runtime.LockOSThread()
		ready <- n.enter(flags)
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		close(n.work)
		<-ended
		_ = n.file.Close()
	})
	return n
}

func (n *NS) enter(flags int) error {
	if err := unix.Unshare(flags); err != nil {
		return err
	}
	var err error
	if n.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// Path names the namespace for another process, such as a CNI plugin.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// FD is the namespace's file.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Do runs f on the namespace's thread. Sockets that f opens and processes that
// it starts stay in the namespace.
func (n *NS) Do(f func() error) error {
	done := make(chan error, 1)
	n.work <- func() { done <- f() }
	return <-done
}

// Must is Do for what the test cannot go on without.
func (n *NS) Must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatalf("in %s: %v", n.Name, err)
	}
}

// Try runs a command in the namespace and returns what it wrote.
func (n *NS) Try(args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Run is Try for a command that must succeed; the line is split at spaces.
func (n *NS) Run(line string) string {
	n.t.Helper()
	out, err := n.Try(strings.Fields(line)...)
	if err != nil {
		n.t.Fatalf("in %s: %s: %v\n%s", n.Name, line, err, out)
	}
	return out
}

// Start starts a program that dies with the test process, if not before.
func (n *NS) Start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return n.Do(cmd.Start)
}

// Dial connects from the namespace.
func (n *NS) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Join connects two namespaces by a veth pair, both ends up.
func Join(a *NS, aName string, b *NS, bName string) {
	a.t.Helper()
	a.Must(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return up(aName)
	})
	b.Must(func() error { return up(bName) })
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}
