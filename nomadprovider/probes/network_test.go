package probes

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// direct is the way of most pods.
func direct(address string) string { return address }

func try(t *testing.T, timeout time.Duration, a Action) (Outcome, string) {
	t.Helper()
	outcome, output, err := NewNetwork("kube-probe/1.35", direct).Probe(t.Context(), Probe{Timeout: timeout, Action: a})
	if err != nil {
		t.Fatal(err)
	}
	return outcome, output
}

func address(t *testing.T, s *httptest.Server) (host string, port int) {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, _ = strconv.Atoi(u.Port())
	return u.Hostname(), port
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.WriteHeader(code)
		fmt.Fprint(w, "body")
	})
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("url"), http.StatusFound)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 3*MaxOutput)) })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	for name, c := range map[string]struct {
		path   string
		secure bool
		want   Outcome
		output string // beginning
	}{
		"200":                  {"/status/200", false, Success, "body"},
		"399":                  {"/status/399", false, Warning, "Probe terminated redirects, Response body: body"},
		"400":                  {"/status/400", false, Failure, "HTTP probe failed with statuscode: 400"},
		"500":                  {"/status/500", false, Failure, "HTTP probe failed with statuscode: 500"},
		"any certificate":      {"/status/200", true, Success, "body"},
		"redirect":             {"/to?url=/status/200", false, Success, "body"},
		"redirect to failure":  {"/to?url=/status/404", false, Failure, "HTTP probe failed with statuscode: 404"},
		"redirect elsewhere":   {"/to?url=http://192.0.2.1/", false, Warning, "Probe terminated redirects, Response body:"},
		"redirect in a circle": {"/to?url=/to%3Furl=/", false, Failure, "HTTP probe failed with statuscode: 404"},
		"no answer":            {"/slow", false, Failure, "Get "},
		"long":                 {"/long", false, Success, strings.Repeat("x", MaxOutput)},
		"not a path":           {"%zz", false, Failure, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := &HTTP{Path: c.path}
			h.Host, h.Port = address(t, plain)
			if c.secure {
				h.Scheme = "HTTPS"
				h.Host, h.Port = address(t, secure)
			}
			got, output := try(t, 300*time.Millisecond, Action{HTTP: h})
			if got != c.want || !strings.HasPrefix(output, c.output) || len(output) > MaxOutput {
				t.Errorf("%s, %.200q", got, output)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		gone := httptest.NewServer(mux)
		h := &HTTP{}
		h.Host, h.Port = address(t, gone)
		gone.Close()
		if got, output := try(t, time.Second, Action{HTTP: h}); got != Failure || !strings.Contains(output, "connection refused") {
			t.Errorf("%s, %q", got, output)
		}
	})
}

func TestHTTPHeaders(t *testing.T) {
	var host string
	var got http.Header
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got, host = r.Header, r.Host }))
	defer s.Close()
	h := &HTTP{Path: "/"}
	h.Host, h.Port = address(t, s)
	ask := func(headers ...Header) {
		t.Helper()
		h.Headers = headers
		if outcome, output := try(t, time.Second, Action{HTTP: h}); outcome != Success {
			t.Fatal(output)
		}
	}
	ask()
	if len(got) != 3 || got.Get("User-Agent") != "kube-probe/1.35" || got.Get("Accept") != "*/*" || got.Get("Connection") != "close" ||
		host != net.JoinHostPort(h.Host, strconv.Itoa(h.Port)) {
		t.Errorf("%v, host %s", got, host)
	}
	ask(Header{"host", "example.org"}, Header{"X-A", "1"}, Header{"x-a", "2"}, Header{"User-Agent", "me"}, Header{"Accept", ""})
	if host != "example.org" || fmt.Sprint(got["X-A"]) != "[1 2]" || got.Get("User-Agent") != "me" {
		t.Errorf("%v, host %s", got, host)
	}
	if _, there := got["Accept"]; there {
		t.Errorf("an empty Accept was sent: %v", got)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := &TCP{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	if got, output := try(t, time.Second, Action{TCP: tcp}); got != Success || output != "" {
		t.Errorf("%s, %q", got, output)
	}
	l.Close()
	if got, output := try(t, time.Second, Action{TCP: tcp}); got != Failure || !strings.Contains(output, "connection refused") {
		t.Errorf("%s, %q", got, output)
	}
}

func TestGRPC(t *testing.T) {
	serve := func(s *grpc.Server) *GRPC {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve(l) }() // ends with Stop
		t.Cleanup(s.Stop)
		return &GRPC{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	}
	s, hs := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(s, hs)
	hs.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	hs.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	healthy, bare := serve(s), serve(grpc.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mute := &GRPC{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	for name, c := range map[string]struct {
		to      *GRPC
		service string
		want    Outcome
		output  string
	}{
		"server":      {healthy, "", Success, "service healthy"},
		"service":     {healthy, "up", Success, "service healthy"},
		"not serving": {healthy, "down", Failure, `service unhealthy (responded with "NOT_SERVING")`},
		"unknown":     {healthy, "none", Failure, "error: health rpc probe failed: rpc error: code = NotFound"},
		"no health":   {bare, "", Failure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "},
		"mute":        {mute, "", Failure, "timeout: failed to connect service \"127.0.0.1:"},
		"nobody":      {&GRPC{Host: "127.0.0.1", Port: 1}, "", Failure, "timeout: failed to connect service \"127.0.0.1:1\" within 500ms"},
	} {
		t.Run(name, func(t *testing.T) {
			to := *c.to
			to.Service = c.service
			if got, output := try(t, 500*time.Millisecond, Action{GRPC: &to}); got != c.want || !strings.HasPrefix(output, c.output) {
				t.Errorf("%s, %q", got, output)
			}
		})
	}
}

func TestBroken(t *testing.T) {
	for _, a := range []Action{{Broken: "port web not found"}, {}} {
		if outcome, _, err := NewNetwork("", direct).Probe(t.Context(), Probe{Action: a}); outcome != Unknown || err == nil {
			t.Errorf("%s, %v", outcome, err)
		}
	}
}

// All probes go where the network has them go.
func TestVia(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	defer s.Close()
	var asked []string
	n := NewNetwork("", func(address string) string {
		asked = append(asked, address)
		return s.Listener.Addr().String()
	})
	for name, a := range map[string]Action{"http": {HTTP: &HTTP{Host: "10.9.9.9", Port: 80}}, "tcp": {TCP: &TCP{Host: "10.9.9.9", Port: 80}}, "grpc": {GRPC: &GRPC{Host: "10.9.9.9", Port: 80}}} {
		asked = nil
		outcome, output, err := n.Probe(t.Context(), Probe{Timeout: time.Second, Action: a})
		// The server speaks no gRPC.
		if len(asked) == 0 || asked[0] != "10.9.9.9:80" || err != nil || name != "grpc" && outcome != Success {
			t.Errorf("%s: %s %q %v, asked for %q", name, outcome, output, err, asked)
		}
		if name == "http" && output != "10.9.9.9:80" {
			t.Errorf("the server is asked for %s", output)
		}
	}
}
