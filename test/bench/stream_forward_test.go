package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/tools/portforward"
)

// The pod's ports.
const (
	echoPort = 9001 + iota
	sourcePort
	sinkPort
)

// serverScript serves them, one process a connection.
const serverScript = `nc -ll -p %d -e cat &
nc -ll -p %d -e sh -c '%s' &
nc -ll -p %d -e sh -c '%s' &
wait`

// BenchmarkPortForward carries connections by port-forward, over websocket as
// kubectl does, beside connections to the pod's own address.
func BenchmarkPortForward(b *testing.B) {
	h := hy
	s := h.streamed(b, h.namespace(b), "server", fmt.Sprintf(serverScript, echoPort, sourcePort, sourceScript(*streamMiB), sinkPort, sinkScript))
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	text := numbered(1<<14, 64) // of a MiB
	must(b, os.WriteFile(filepath.Join(string(s.marks), "text"), text, 0o644))
	dials := [2]dialer{s.forwarded(b), s.direct}
	for _, dial := range dials {
		must(b, poll(ctx, oneTimeout, func(context.Context) error { _, err := echo(dial); return err }))
	}
	var took [2][]time.Duration
	for range *streamCalls {
		for i, dial := range dials {
			d, err := echo(dial)
			must(b, err)
			took[i] = append(took[i], d)
		}
	}
	reportAdded(b, "port-forward: a connection, a byte there and back", "direct", took[0], took[1])
	size := int64(*streamMiB) << 20
	out := h.turns(b, size, func(i int) (time.Duration, error) { return download(dials[i], text, size) })
	reportRates(b, fmt.Sprintf("port-forward: %d MiB out of a pod by one connection", *streamMiB), "direct", out)
	in := h.turns(b, size, func(i int) (time.Duration, error) { return upload(dials[i], text, size) })
	reportRates(b, fmt.Sprintf("port-forward: %d MiB into a pod by one connection", *streamMiB), "direct", in)
	must(b, h.removePods(b.Context(), s.pod.Namespace))
}

// dialer connects to one of the pod's ports.
type dialer func(port int) (*net.TCPConn, error)

func (s *streamed) direct(port int) (*net.TCPConn, error) {
	return dialTCP(net.JoinHostPort(s.pod.Status.PodIP, strconv.Itoa(port)))
}

func dialTCP(address string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", address, oneTimeout)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), conn.SetDeadline(time.Now().Add(streamTimeout))
}

// forwarded opens ports of this machine for the pod's until the benchmark ends.
func (s *streamed) forwarded(b *testing.B) dialer {
	b.Helper()
	target := s.h.kube.CoreV1().RESTClient().Get().Resource("pods").Namespace(s.pod.Namespace).Name(s.pod.Name).SubResource("portforward").URL()
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(target, s.rest)
	must(b, err)
	var wanted []string
	for _, port := range []int{echoPort, sourcePort, sinkPort} {
		wanted = append(wanted, fmt.Sprintf("0:%d", port))
	}
	stop, open := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(tunnel, []string{"127.0.0.1"}, wanted, stop, open, io.Discard, io.Discard)
	must(b, err)
	over := make(chan error, 1)
	go func() { over <- f.ForwardPorts() }()
	select {
	case <-open:
	case err := <-over:
		b.Fatal("port-forward:", err)
	}
	b.Cleanup(func() {
		close(stop)
		<-over
	})
	ports, err := f.GetPorts()
	must(b, err)
	local := map[int]uint16{}
	for _, p := range ports {
		local[int(p.Remote)] = p.Local
	}
	return func(port int) (*net.TCPConn, error) { return dialTCP(fmt.Sprintf("127.0.0.1:%d", local[port])) }
}

// echo takes the time of a connection on which one byte comes back.
func echo(dial dialer) (time.Duration, error) {
	start := time.Now()
	conn, err := dial(echoPort)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{'x'}); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return time.Since(start), err
}

func download(dial dialer, text []byte, size int64) (time.Duration, error) {
	start := time.Now()
	conn, err := dial(sourcePort)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	got := &repeated{text: text}
	if _, err := io.Copy(got, conn); err == nil && got.n != size {
		return 0, fmt.Errorf("%d bytes came of %d", got.n, size)
	}
	return time.Since(start), err
}

func upload(dial dialer, text []byte, size int64) (time.Duration, error) {
	start := time.Now()
	conn, err := dial(sinkPort)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if _, err := io.CopyN(conn, &repeating{text: text}, size); err != nil {
		return 0, err
	}
	if err := conn.CloseWrite(); err != nil {
		return 0, err
	}
	said, err := io.ReadAll(conn)
	if err == nil {
		err = allArrived(string(said), size)
	}
	return time.Since(start), err
}
