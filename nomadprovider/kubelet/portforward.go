package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// forwardTries is how often a call is made that Nomad's docker driver may end
	// before it has begun (hashicorp/nomad#27146), and forwardBegins how long it
	// may take to begin.
	forwardTries  = 5
	forwardBegins = 15 * time.Second
	// lastWords is how long a client may go on sending when the pod has closed a
	// connection, as in containerd (internal/cri/server/sandbox_portforward_linux.go).
	lastWords = time.Second
	// directPatience is how long a pod's own address may take to answer.
	directPatience = time.Second
)

// portForward serves kubectl port-forward over SPDY or websocket.
func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	t, code, err := s.findPod(r)
	if err != nil {
		fail(w, code, err)
		return
	}
	if t.allocID == "" || t.pod.Status.Phase != corev1.PodRunning {
		fail(w, http.StatusInternalServerError, fmt.Errorf("pod %q does not run", t.pod.Name))
		return
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	f := &forwarder{ctx: ctx, s: s, t: t}
	defer f.close()
	portforward.ServePortForward(&hangupWriter{w, cancel}, r.WithContext(ctx), f,
		t.pod.Name, t.pod.UID, opts, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// way is a call by which the pod's network is reached.
type way struct {
	task string
	argv []string
}

// ways to the pod's network: the docker proxy, by any container that runs, or a
// task of the pod's that has the companion's program.
func (s *Server) ways(pod *corev1.Pod) []way {
	var out []way
	if s.driver(pod) == "docker" {
		for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
			for i := range list {
				if list[i].State.Running != nil && len(out) == 0 {
					out = append(out, way{translate.TaskName(list[i].Name), []string{dockerproxy.CallProgram, dockerproxy.CallForward}})
				}
			}
		}
	}
	return append(out, way{translate.CompanionTask, []string{"/companion", "forward"}})
}

// forwarder carries the connections of one request, by one call at most.
type forwarder struct {
	ctx context.Context // of the request
	s   *Server
	t   *target

	away atomic.Bool // the pod's address is not reached from here

	mu     sync.Mutex
	client *forward.Client
}

var _ portforward.PortForwarder = (*forwarder)(nil)

// PortForward carries one connection.
func (f *forwarder) PortForward(ctx context.Context, _ string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	conn, err := f.dial(ctx, port)
	if err != nil {
		return fmt.Errorf("port %d of pod %s: %w", port, f.t.pod.Name, err)
	}
	defer conn.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(stream, conn); err != nil {
		return err
	}
	select {
	case <-sent:
	case <-time.After(lastWords):
	case <-ctx.Done():
	}
	return nil
}

// podConn is a connection to a port of a pod.
type podConn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// dial makes a connection, directly or by the call that carries those of this
// request.
func (f *forwarder) dial(ctx context.Context, port int32) (podConn, error) {
	if conn := f.direct(ctx, port); conn != nil {
		return conn, nil
	}
	f.mu.Lock()
	if f.client == nil || f.client.Closed() {
		client, err := f.s.reach(f.ctx, f.t)
		if err != nil {
			f.mu.Unlock()
			return nil, err
		}
		f.client = client
	}
	client := f.client
	f.mu.Unlock()
	return client.Dial(ctx, port)
}

// direct dials the pod's own address where that is nobody else's, which carries an
// order more than a call by Nomad. It is nil for what listens on the pod's loopback
// alone, and when the network is not reached from here; then no other connection of
// this request waits for that again.
func (f *forwarder) direct(ctx context.Context, port int32) podConn {
	ip := f.t.pod.Status.PodIP
	if !f.s.o.PodNetwork || ip == "" || f.t.pod.Spec.HostNetwork || f.away.Load() {
		return nil
	}
	d := net.Dialer{Timeout: directPatience}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
	if err != nil {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			f.away.Store(true)
			f.s.o.Log.Debug("a pod's address is not reached", "pod", f.t.pod.UID, "error", err)
		}
		return nil
	}
	return conn.(*net.TCPConn)
}

func (f *forwarder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.client != nil {
		_ = f.client.Close() // it may have ended by itself
	}
}

// errNoWay is what a pod's network cannot be reached for.
var errNoWay = errors.New("the pod's network is not reached: its Nomad client has no docker proxy, and the pod no companion (virtualNodes[].companionImage)")

// reach makes the call that carries connections into the pod's network until ctx
// ends.
func (s *Server) reach(ctx context.Context, t *target) (*forward.Client, error) {
	var errs []error
	for _, w := range s.ways(t.pod) {
		for range forwardTries {
			client, again, err := s.call(ctx, t.allocID, w)
			switch {
			case err == nil:
				return client, nil
			case ctx.Err() != nil:
				return nil, ctx.Err()
			}
			errs = append(errs, err)
			if !again {
				break
			}
		}
	}
	s.o.Log.Debug("no way into a pod's network", "pod", t.pod.UID, "error", errors.Join(errs...))
	return nil, errNoWay
}

// call makes one call; again says that it was ended before it could begin.
func (s *Server) call(ctx context.Context, allocID string, w way) (client *forward.Client, again bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	in, toCall := io.Pipe()
	fromCall, out := io.Pipe()
	var said bytes.Buffer // read after the call's end only
	var unfinished bool   // read after the call's end only
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, failed := s.o.Exec.Run(ctx, taskexec.Command{
			Namespace: s.o.Namespace, AllocID: allocID, Task: w.task, Driver: "docker", Handshake: true, Argv: w.argv,
			In: in, Out: out, ErrOut: &limited{buf: &said},
		})
		if unfinished = failed == nil && code == 0; failed == nil {
			failed = fmt.Errorf("%s in task %s ended with %d: %s", w.argv[0], w.task, code, bytes.TrimSpace(said.Bytes()))
		}
		cancel(failed)
		_ = out.CloseWithError(io.EOF)
		_ = in.CloseWithError(io.ErrClosedPipe)
	}()
	client, err = forward.NewClient(&callEnds{fromCall, toCall, func() { cancel(io.EOF) }})
	if err == nil {
		err = client.Ping(forwardBegins)
	}
	if err == nil {
		return client, false, nil
	}
	cancel(err)
	<-ended
	if client != nil {
		_ = client.Close()
	}
	return nil, unfinished, context.Cause(ctx)
}

// callEnds is a call's input and output as one stream.
type callEnds struct {
	io.ReadCloser
	w   *io.PipeWriter
	end func()
}

func (c *callEnds) Write(p []byte) (int, error) { return c.w.Write(p) }

func (c *callEnds) Close() error {
	c.end()
	return errors.Join(c.w.Close(), c.ReadCloser.Close())
}

// limited keeps the first of what is written.
type limited struct{ buf *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.buf.Write(p[:min(len(p), 1024-min(1024, l.buf.Len()))])
	return len(p), nil
}
