package bench

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxy stands between nomad-kubelet and Nomad and counts.
type proxy struct {
	address string
	forward *httputil.ReverseProxy

	mu        sync.Mutex
	counts    map[string]int
	registers map[string]span
}

// span is the time of one request, from its arrival to its answer.
type span struct{ from, to time.Time }

func newProxy(to string) (*proxy, error) {
	target, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	p := &proxy{counts: map[string]int{}, registers: map[string]span{}}
	p.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		// Event streams and followed logs come in small pieces.
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	return p, nil
}

func startProxy(port int, to string) (*proxy, error) {
	p, err := newProxy(to)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	p.address = "http://" + l.Addr().String()
	go func() { _ = http.Serve(l, p) }() // ends with the process
	return p, nil
}

var jobInBody = regexp.MustCompile(`"ID":"(k8s-[^"]+)"`)

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	arrived := time.Now()
	kind := kindOf(r.Method, r.URL.Path)
	job := ""
	if kind == "register" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if m := jobInBody.FindSubmatch(body); m != nil {
			job = string(m[1])
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	p.mu.Lock()
	p.counts[kind]++
	p.mu.Unlock()
	p.forward.ServeHTTP(w, r)
	if job != "" {
		p.mu.Lock()
		p.registers[job] = span{arrived, time.Now()}
		p.mu.Unlock()
	}
}

// kindOf names a request; writes have names of their own, so has a command that
// is run in a task, and all reads are "read".
func kindOf(method, path string) string {
	if strings.HasPrefix(path, "/v1/client/allocation/") && strings.HasSuffix(path, "/exec") {
		return execCall
	}
	if method == http.MethodGet || method == http.MethodHead {
		return "read"
	}
	switch {
	case path == "/v1/jobs":
		return "register"
	case strings.HasPrefix(path, "/v1/job/") && method == http.MethodDelete:
		return "deregister"
	case strings.HasPrefix(path, "/v1/var/"):
		return "variable " + strings.ToLower(method)
	}
	return method + " " + path
}

// execCall is the kind of a command that is run in a task, and no write.
const execCall = "exec"

func (p *proxy) snapshot() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

func (p *proxy) registered(job string) (span, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.registers[job]
	return s, ok
}

// since is what has been counted after before was taken.
func since[K comparable, N int | float64](before, after map[K]N) map[K]N {
	out := map[K]N{}
	for k, n := range after {
		if d := n - before[k]; d != 0 {
			out[k] = d
		}
	}
	return out
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/v1/jobs", "read"},
		{"PUT", "/v1/jobs", "register"},
		{"DELETE", "/v1/job/k8s-a-b", "deregister"},
		{"PUT", "/v1/var/nomad/jobs/k8s-a-b", "variable put"},
		{"GET", "/v1/client/allocation/x/exec", "exec"},
		{"GET", "/v1/client/allocation/x/stats", "read"},
		{"POST", "/v1/client/allocation/x/signal", "POST /v1/client/allocation/x/signal"},
	} {
		if got := kindOf(c.method, c.path); got != c.want {
			t.Errorf("%s %s is %q, want %q", c.method, c.path, got, c.want)
		}
	}
}
