package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// dialTimeout bounds a connection to a port of the pod.
	dialTimeout = 30 * time.Second
	// window is how many bytes of a connection may be under way: over a stream of
	// some milliseconds it bounds the throughput.
	window = 4 << 20
	// abort begins the line that breaks a connection off, before its stream's ID.
	abort = "abort "
)

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.MaxStreamWindowSize = window
	// The stream below says itself when it is gone, and how long a half-closed
	// connection stays open is its ends' business.
	c.EnableKeepAlive = false
	c.StreamCloseTimeout = 0
	c.ConnectionWriteTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// Serve makes connections as the other end of the stream asks for them, by dial,
// until the stream or ctx ends.
func Serve(ctx context.Context, stream io.ReadWriteCloser, dial func(ctx context.Context, port int) (net.Conn, error)) error {
	session, err := yamux.Server(stream, config())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = session.Close() })()
	sv := &server{dial: dial, open: map[uint32]func(){}}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer session.Close()
	for {
		s, err := session.AcceptStream()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, yamux.ErrSessionShutdown):
			return nil
		case err != nil:
			return err
		}
		wg.Go(func() { sv.serve(ctx, s) })
	}
}

// server is one end of a stream.
type server struct {
	dial func(ctx context.Context, port int) (net.Conn, error)

	mu sync.Mutex
	// open breaks off the connections that are open, by the IDs of their streams.
	open map[uint32]func()
}

// serve does what the first line of a stream asks for: a connection, whose errors
// are told to the other end, or that one is broken off, for which yamux has no
// word.
func (sv *server) serve(ctx context.Context, s *yamux.Stream) {
	defer s.Close()
	in := bufio.NewReader(s)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	if id, ok := strings.CutPrefix(line, abort); ok {
		sv.abort(strings.TrimSpace(id))
		return
	}
	conn, err := connect(ctx, strings.TrimSpace(line), sv.dial)
	if err != nil {
		_, _ = fmt.Fprintln(s, strings.ReplaceAll(err.Error(), "\n", " ")) // nobody else to tell
		return
	}
	defer conn.Close()
	defer sv.note(s, conn)()
	if _, err := fmt.Fprintln(s); err != nil {
		return
	}
	join(ctx, half{s, in}, conn)
}

// note keeps a connection for the case that it is broken off.
func (sv *server) note(s *yamux.Stream, conn net.Conn) (forget func()) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.open[s.StreamID()] = func() {
		_ = conn.Close()
		_ = s.SetDeadline(time.Now()) // whatever waits for the other end
	}
	return func() {
		sv.mu.Lock()
		defer sv.mu.Unlock()
		delete(sv.open, s.StreamID())
	}
}

func (sv *server) abort(id string) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if end := sv.open[uint32(n)]; end != nil {
		end()
	}
}

func connect(ctx context.Context, port string, dial func(ctx context.Context, port int) (net.Conn, error)) (net.Conn, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is no port", port)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return dial(ctx, int(n))
}

// half is a connection over a yamux stream, which its Close only half-closes.
type half struct {
	*yamux.Stream
	in *bufio.Reader
}

// Read implements [io.Reader].
func (h half) Read(p []byte) (int, error) { return h.in.Read(p) }

// CloseWrite ends the writing.
func (h half) CloseWrite() error { return h.Stream.Close() }

// halfCloser is a connection of which each direction ends by itself.
type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// join copies both ways between two connections until both directions have
// ended, each by itself, or ctx ends.
func join(ctx context.Context, a halfCloser, b net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = b.Close(); _ = a.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := io.Copy(b, a)
		if w, ok := b.(interface{ CloseWrite() error }); ok && err == nil {
			_ = w.CloseWrite()
		} else {
			_ = b.Close()
		}
	})
	wg.Go(func() {
		_, _ = io.Copy(a, b)
		_ = a.CloseWrite()
	})
	wg.Wait()
}

// Local dials a port on the loopback of the network namespace it is called in, as
// the kubelet's runtimes do.
func Local(ctx context.Context, port int) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		if six, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port))); err6 == nil {
			return six, nil
		}
	}
	return conn, err
}
