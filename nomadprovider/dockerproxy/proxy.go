package dockerproxy

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// logAppears is how long after a container's exit is first asked for its log's
	// reader, a process that the driver starts, may take to come.
	logAppears = 2 * time.Second
	// lookAgain is the pause between two looks for it.
	lookAgain = 20 * time.Millisecond
	// logLimit bounds the wait for a log to be read, as when a reader hangs.
	logLimit = 10 * time.Second
	// execHold bounds an answer on a command that runs on.
	execHold = 10 * time.Second
	// inHand is what readers get to pass on what they have just read.
	inHand = 100 * time.Millisecond
)

// The requests that matter, with or without a version before them.
var (
	containerPath = regexp.MustCompile(`^(?:/v[0-9.]+)?/containers/([^/]+)/(logs|wait|exec)$`)
	createPath    = regexp.MustCompile(`^(?:/v[0-9.]+)?/containers/create$`)
	startPath     = regexp.MustCompile(`^(?:/v[0-9.]+)?/containers/([^/]+)/start$`)
	versionPath   = regexp.MustCompile(`^(?:/v[0-9.]+)?/version$`)
	execPath      = regexp.MustCompile(`^(?:/v[0-9.]+)?/exec/([^/]+)/(start|json|resize)$`)
)

// Proxy passes requests to a Docker engine; see the package's comment.
type Proxy struct {
	engine *http.Transport
	pass   *httputil.ReverseProxy
	logs   *streams
	execs  *streams
	calls  *calls
	dial   func(ctx context.Context) (net.Conn, error)
	log    hclog.Logger
}

// New makes a Proxy to the engine that listens on the Unix socket.
func New(socket string, log hclog.Logger) *Proxy {
	dial := func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }
	p := &Proxy{logs: newStreams(), execs: newStreams(), calls: &calls{by: map[string]*call{}}, dial: dial, log: log}
	p.engine = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true,
	}
	p.pass = &httputil.ReverseProxy{
		Transport:      p.engine,
		FlushInterval:  -1,
		Rewrite:        func(r *httputil.ProxyRequest) { address(r.Out) },
		ModifyResponse: p.answered,
		ErrorLog:       log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	return p
}

// answered sees the answers to requests that pass, before they do.
func (p *Proxy) answered(resp *http.Response) error {
	if m := startPath.FindStringSubmatch(resp.Request.URL.Path); m != nil && resp.StatusCode == http.StatusNoContent {
		p.started(resp.Request.Context(), m[1])
	}
	watchOutput(resp)
	return mark(resp)
}

// address makes a request one to the engine.
func address(r *http.Request) { r.URL.Scheme, r.URL.Host, r.Host = "http", "docker", "" }

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m := containerPath.FindStringSubmatch(r.URL.Path); m != nil {
		switch id := m[1]; {
		case m[2] == "wait":
			p.wait(w, r, id)
			return
		case m[2] == "exec":
			p.createExec(w, r, id)
			return
		case r.URL.Query().Get("follow") != "":
			p.followLog(w, r, id)
			return
		}
	}
	if createPath.MatchString(r.URL.Path) {
		p.create(w, r)
		return
	}
	if m := execPath.FindStringSubmatch(r.URL.Path); m != nil {
		id := m[1]
		if c := p.calls.get(id); c != nil {
			p.serveCall(w, r, id, c, m[2])
			return
		}
		switch m[2] {
		case "start":
			defer p.execs.forget(id)
			read := sync.OnceFunc(p.execs.begin(id))
			defer read()
			r = r.WithContext(context.WithValue(r.Context(), outputRead{}, read))
		case "json":
			p.settle(r.Context(), p.execs, id, execHold)
		}
	}
	p.pass.ServeHTTP(w, r)
}

// settle waits until an output has been read.
func (p *Proxy) settle(ctx context.Context, s *streams, id string, limit time.Duration) (read bool) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if read = s.drained(limited, id); read {
		sleep(limited, inHand)
	}
	return read
}

// wait answers once the container has exited and its log has been read. The
// engine sends the head of its answer at once and the body at the exit.
func (p *Proxy) wait(w http.ResponseWriter, r *http.Request, id string) {
	asked := time.Now()
	out := r.Clone(r.Context())
	address(out)
	out.RequestURI = ""
	resp, err := p.engine.RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		// Cut off here, too, rather than ended well.
		panic(http.ErrAbortHandler)
	}
	if resp.StatusCode == http.StatusOK {
		for !p.settle(r.Context(), p.logs, id, logLimit) && time.Since(asked) < logAppears {
			if !sleep(r.Context(), lookAgain) {
				break
			}
		}
		p.logs.forget(id)
	}
	_, _ = w.Write(body) // nobody to tell
}

func sleep(ctx context.Context, d time.Duration) (slept bool) {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
