package dockerproxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
)

// Calls are commands that the proxy runs itself, for a container, when they are
// asked for as the engine is asked for others: so they come by Nomad's exec API
// and with its rights. A client without the proxy has no such program.
const (
	// CallProgram stands in the place of a command's program.
	CallProgram = "/nomad-kubelet/docker-proxy"
	// CallAttach is attached to the container's own process. It takes a token, by
	// which it is ended: Nomad does not tell that a caller has gone, only that its
	// input has ended, after which others still want to read.
	CallAttach = "attach"
	// CallEnd ends the call with the token that it is given.
	CallEnd = "end"
	// CallForward carries connections to ports of the container's network, as
	// package forward has it.
	CallForward = "forward"
	// CallUsage answers what the client's containers use; see [UsageRequest].
	CallUsage = "usage"
)

// callKept is how long a call is known that nobody starts, or after its end.
const callKept = 5 * time.Minute

// call is one of them.
type call struct {
	container, verb, token string
	tty                    bool

	mu      sync.Mutex
	started bool
	cancel  context.CancelFunc // once started
	code    int
	over    chan struct{} // closed at its end
}

// calls are those that are known, by ID.
type calls struct {
	mu sync.Mutex
	by map[string]*call
}

func (c *calls) get(id string) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by[id]
}

func (c *calls) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.by, id)
}

func (c *calls) add(x *call) (id string) {
	id = "nomad-kubelet-" + rand.Text()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[id] = x
	time.AfterFunc(callKept, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if !x.started {
			c.forget(id)
		}
	})
	return id
}

// end ends the call of a container that has this token, if there is one.
func (c *calls) end(container, token string) {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.by))
	c.mu.Unlock()
	for _, x := range all {
		if token == "" || x.verb == CallEnd || x.container != container || x.token != token {
			continue
		}
		x.mu.Lock()
		if x.cancel != nil {
			x.cancel()
		}
		x.mu.Unlock()
	}
}

// createExec makes a command, or a call.
func (p *Proxy) createExec(w http.ResponseWriter, r *http.Request, container string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, createLimit))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	var want struct {
		Cmd []string
		Tty bool
	}
	if json.Unmarshal(body, &want) != nil || len(want.Cmd) < 2 || want.Cmd[0] != CallProgram {
		r.Body = io.NopCloser(bytes.NewReader(body))
		p.pass.ServeHTTP(w, r)
		return
	}
	c := &call{container: container, verb: want.Cmd[1], tty: want.Tty, over: make(chan struct{})}
	if len(want.Cmd) > 2 {
		c.token = want.Cmd[2]
	}
	id := p.calls.add(c)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]string{"Id": id}) // nobody to tell
}

// serveCall answers what the driver asks about a call.
func (p *Proxy) serveCall(w http.ResponseWriter, r *http.Request, id string, c *call, what string) {
	switch what {
	case "start":
		p.startCall(w, r, id, c)
	case "json":
		p.inspectCall(w, r, c)
	case "resize":
		if c.verb == CallAttach {
			r.URL.Path = "/containers/" + c.container + "/resize"
			p.pass.ServeHTTP(w, r)
		}
	}
}

// inspectCall says whether a call runs. The driver asks over and over, so an
// answer that would only be the same waits a little.
func (p *Proxy) inspectCall(w http.ResponseWriter, r *http.Request, c *call) {
	runs := false
	select {
	case <-c.over:
		sleep(r.Context(), inHand)
	case <-time.After(execHold):
		runs = true
	case <-r.Context().Done():
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"Running": runs, "ExitCode": c.code}) // nobody to tell
}

// startCall takes the connection over, as the engine does, and runs the call.
func (p *Proxy) startCall(w http.ResponseWriter, r *http.Request, id string, c *call) {
	c.mu.Lock()
	again := c.started
	c.started = true
	c.mu.Unlock()
	if again {
		refuse(w, http.StatusConflict, errors.New("the call has been started"))
		return
	}
	_, _ = io.Copy(io.Discard, r.Body) // its settings, which are those of its making
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	defer conn.Close()
	kind := "application/vnd.docker.multiplexed-stream"
	if c.tty {
		kind = "application/vnd.docker.raw-stream"
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", kind); err != nil {
		return
	}
	s := &callStream{conn: conn, in: io.MultiReader(bytes.NewReader(ahead(buffered.Reader)), conn)}
	// The proxy ends, and its calls with it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	c.mu.Lock()
	c.cancel = cancel
	c.mu.Unlock()
	code := 0
	switch c.verb {
	case CallEnd:
		p.calls.end(c.container, c.token)
	case CallAttach:
		err = p.attach(ctx, c, s)
	case CallForward:
		err = p.forward(ctx, c, s)
	case CallUsage:
		err = p.usage(ctx, s)
	default:
		err = fmt.Errorf("%q is no call", c.verb)
	}
	if err != nil {
		code = 1
		_, _ = s.frame(2, []byte(err.Error()+"\n"), c.tty) // nobody else to tell
	}
	c.mu.Lock()
	c.code = code
	c.mu.Unlock()
	close(c.over)
	time.AfterFunc(callKept, func() { p.calls.forget(id) })
}

// ahead is what was read beyond the request.
func ahead(r interface {
	Buffered() int
	Peek(int) ([]byte, error)
}) []byte {
	b, _ := r.Peek(r.Buffered())
	return bytes.Clone(b)
}

// callStream is the driver's end of a call.
type callStream struct {
	conn net.Conn
	in   io.Reader
	mu   sync.Mutex // of frames
}

func (s *callStream) Read(p []byte) (int, error) { return s.in.Read(p) }

// Write sends output: a frame of the engine's multiplexed stream.
func (s *callStream) Write(p []byte) (int, error) { return s.frame(1, p, false) }

func (s *callStream) Close() error { return s.conn.Close() }

// frame sends output of one stream (api/types/container: 1 is stdout, 2 stderr);
// with a terminal there is but one and no frames.
func (s *callStream) frame(stream byte, p []byte, tty bool) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tty {
		return s.conn.Write(p)
	}
	head := [8]byte{stream}
	binary.BigEndian.PutUint32(head[4:], uint32(len(p)))
	n, err := (&net.Buffers{head[:], p}).WriteTo(s.conn)
	return int(max(0, n-int64(len(head)))), err
}

// forward carries connections into the container's network namespace.
func (p *Proxy) forward(ctx context.Context, c *call, s *callStream) error {
	pid, err := p.pid(ctx, c.container)
	if err != nil {
		return err
	}
	dial, done, err := inNamespaceOf(pid)
	if err != nil {
		return err
	}
	defer done()
	return forward.Serve(ctx, s, dial)
}

// pid of a container's process.
func (p *Proxy) pid(ctx context.Context, id string) (int, error) {
	c, err := p.inspect(ctx, id)
	if err != nil {
		return 0, err
	}
	if c.State.Pid == 0 {
		return 0, errors.New("the container does not run")
	}
	return c.State.Pid, nil
}

// ask reads an answer of the engine's.
func (p *Proxy) ask(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	address(req)
	resp, err := p.engine.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var answer struct {
			Message string `json:"message"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&answer) // without one the status tells
		return fmt.Errorf("%s: %s", resp.Status, answer.Message)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}
