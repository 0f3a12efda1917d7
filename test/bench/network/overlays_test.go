package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// taken is what a contender's turns came to.
type taken struct {
	Gbits    []float64
	UDP, TCP []time.Duration `json:"-"`
}

// BenchmarkOverlays has each contender carry the same between two pods on two
// hosts.
func BenchmarkOverlays(b *testing.B) {
	has(b, "netbridge", "consul", "nft", "bridge")
	bed := newBed(b)
	list := []contender{
		bed.handMade("hand-made VXLAN", false),
		bed.handMade("hand-made VXLAN, connections tracked", true),
		bed.netbridge("netbridge, vxlan", fabric.BackendVXLAN),
		bed.netbridge("netbridge, wireguard in userspace", fabric.BackendWireGuard),
	}
	if _, err := os.Stat(filepath.Join(bin, "flanneld")); err == nil {
		list = append(list, bed.flannel())
	}
	results := make([]taken, len(list))
	for round := range *rounds + 1 {
		for i := range list {
			n := (i + round) % len(list) // nobody is always first
			c := list[n]
			rate, udp, tcp := throughput(b, c), roundTrips(b, c, unix.SOCK_DGRAM), roundTrips(b, c, unix.SOCK_STREAM)
			if round == 0 {
				continue // caches and sessions are still cold
			}
			r := &results[n]
			r.Gbits, r.UDP, r.TCP = append(r.Gbits, rate), append(r.UDP, udp...), append(r.TCP, tcp...)
		}
	}
	for i, c := range list {
		tell(b, c, results[i], results[0], results[1], list)
	}
}

func tell(b *testing.B, c contender, r, limit, tracked taken, list []contender) {
	ratio := func(of taken) float64 {
		var each []float64
		for i := range r.Gbits {
			each = append(each, r.Gbits[i]/of.Gbits[i])
		}
		return figures.Quantile(each, 0.5)
	}
	rate := fmt.Sprintf("%.2f Gbit/s", figures.Quantile(r.Gbits, 0.5))
	figure := c.name + ": TCP, one connection"
	switch c.name {
	case list[0].name:
		report.Add(figure, rate, "")
	case list[2].name:
		report.Goal(b, figure, rate, fmt.Sprintf("%.3f of the hand-made, %.3f of the one with tracking", ratio(limit), ratio(tracked)), "0.97 of the hand-made", ratio(limit) >= 0.97)
	default:
		report.Add(figure, rate, fmt.Sprintf("%.3f of the hand-made", ratio(limit)))
	}
	report.Add(c.name+": a round trip by UDP", us(r.UDP), "the hand-made: "+us(limit.UDP))
	report.Add(c.name+": a round trip by TCP", us(r.TCP), "the hand-made: "+us(limit.TCP))
	report.Detail(c.name, map[string]any{"gbits": r.Gbits})
}

// throughput is what arrives of one connection from a to z, in Gbit/s.
func throughput(b *testing.B, c contender) float64 {
	b.Helper()
	var l net.Listener
	c.z.Must(func() (err error) { l, err = net.Listen("tcp4", c.z.ip.String()+":0"); return err })
	defer l.Close()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	out, err := c.a.Dial(ctx, "tcp4", l.Addr().String())
	must(b, err)
	in, err := l.Accept()
	must(b, err)
	defer in.Close()
	go func() {
		defer out.Close()
		buf := make([]byte, 1<<20)
		for {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<20)
	read := func(d time.Duration) (n int, took time.Duration) {
		began := time.Now()
		for took < d {
			m, err := in.Read(buf)
			must(b, err)
			n, took = n+m, time.Since(began)
		}
		return n, took
	}
	read(*stretch / 5) // the window opens
	n, took := read(*stretch)
	return float64(n) * 8 / took.Seconds() / 1e9
}

// roundTrips are of 64 bytes there and back, one after the other. The sockets
// block: what is measured is the way, not Go's poller.
func roundTrips(b *testing.B, c contender, kind int) []time.Duration {
	b.Helper()
	const size = 64
	var server, client int
	addr := func(port int) *unix.SockaddrInet4 { return &unix.SockaddrInet4{Port: port, Addr: c.z.ip.As4()} }
	var port int
	c.z.Must(func() (err error) {
		if server, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(server, addr(0)); err != nil {
			return err
		}
		name, err := unix.Getsockname(server)
		if err != nil {
			return err
		}
		port = name.(*unix.SockaddrInet4).Port
		if kind == unix.SOCK_STREAM {
			return unix.Listen(server, 1)
		}
		return nil
	})
	defer unix.Close(server)
	c.a.Must(func() (err error) {
		if client, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(client, addr(port))
	})
	defer unix.Close(client)
	if kind == unix.SOCK_STREAM {
		conn, _, err := unix.Accept(server)
		must(b, err)
		defer unix.Close(conn)
		for _, fd := range []int{conn, client} {
			must(b, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
		}
		server = conn
	}
	for _, fd := range []int{server, client} {
		must(b, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	}
	answered := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		answered <- answer(server, size)
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out := make([]time.Duration, *calls)
	buf := make([]byte, size)
	for i := range out {
		began := time.Now()
		_, err := unix.Write(client, buf)
		must(b, err)
		n, err := uninterrupted(func() (int, error) { return unix.Read(client, buf) })
		if err != nil || n != size {
			b.Fatalf("%s: round trip %d: %d bytes, %v", c.name, i, n, err)
		}
		out[i] = time.Since(began)
	}
	must(b, <-answered)
	return out
}

// uninterrupted reads again after a signal, with which Go preempts: with a limit to
// the time the kernel does not (signal(7)).
func uninterrupted(read func() (int, error)) (int, error) {
	for {
		n, err := read()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// answer sends back what comes.
func answer(fd, size int) error {
	buf := make([]byte, size)
	for range *calls {
		var from unix.Sockaddr
		n, err := uninterrupted(func() (n int, err error) {
			n, from, err = unix.Recvfrom(fd, buf, 0)
			return n, err
		})
		if err != nil {
			return err
		}
		if from == nil {
			_, err = unix.Write(fd, buf[:n])
		} else {
			err = unix.Sendto(fd, buf[:n], 0, from)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
