package dockerproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// engine is a Docker engine of which the test says what it does.
type engine struct {
	logs, exited chan struct{} // closed: the log ends, the container exits
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	flush := func() { w.(http.Flusher).Flush() }
	switch {
	case strings.HasSuffix(r.URL.Path, "/logs"):
		_, _ = io.WriteString(w, "begin\n")
		flush()
		<-e.logs
		_, _ = io.WriteString(w, "end\n")
	case strings.HasSuffix(r.URL.Path, "/wait"):
		flush()
		<-e.exited
		_, _ = io.WriteString(w, `{"StatusCode":7}`)
	case strings.HasSuffix(r.URL.Path, "/start"):
		conn, buf, _ := w.(http.Hijacker).Hijack()
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		if strings.Contains(r.URL.Path, "/deaf/") {
			_, _ = io.WriteString(conn, "done")
			return
		}
		in, _ := io.ReadAll(buf) // to the end of the input, which is not the end of the output
		_, _ = conn.Write(append([]byte("got "), in...))
	case strings.HasSuffix(r.URL.Path, "/attach"):
		conn, buf, _ := w.(http.Hijacker).Hijack()
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		_, _ = io.WriteString(conn, "attached to c1: ")
		_, _ = io.Copy(conn, buf)
	case r.URL.Path == "/containers/c1/json":
		_ = json.NewEncoder(w).Encode(map[string]any{"State": map[string]int{"Pid": os.Getpid()}})
	case r.URL.RawQuery == "stream=false&one-shot=true":
		_, _ = io.WriteString(w, map[string]string{"/containers/id-v1/stats": statsV1, "/containers/id-v2/stats": statsV2}[r.URL.Path])
	case strings.HasPrefix(r.URL.Path, "/containers/") && strings.HasSuffix(r.URL.Path, "/json"):
		e.inspect(w, path.Base(path.Dir(r.URL.Path)))
	case strings.HasPrefix(r.URL.Path, "/images/"):
		image, _ := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/json")
		if image == "none" {
			refuse(w, http.StatusNotFound, errors.New("No such image"))
			return
		}
		var digests []string
		if image == "pulled" {
			digests = []string{"pulled@sha256:1"}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"Id": "sha256:" + image, "RepoDigests": digests, "Config": map[string]string{"User": image[strings.LastIndex(image, "/")+1:]}})
	case strings.HasSuffix(r.URL.Path, "/version"):
		_, _ = io.WriteString(w, `{"Version":"20.10.24","Os":"linux"}`)
	case strings.HasSuffix(r.URL.Path, "/containers/create"):
		_, _ = io.Copy(w, r.Body)
	default:
		_, _ = io.WriteString(w, r.Method+" "+r.URL.String()+" "+r.Host)
	}
}

// inspect tells of containers; those of Nomad that run have statistics.
func (e *engine) inspect(w http.ResponseWriter, name string) {
	pid, labels := os.Getpid(), map[string]string{nomadLabel: "alloc"}
	switch name {
	case "none":
		refuse(w, http.StatusNotFound, errors.New("No such container"))
		return
	case "stopped":
		pid = 0
	case "theirs":
		labels = nil
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"Id": "id-" + name, "State": map[string]int{"Pid": pid}, "Config": map[string]any{"Labels": labels}})
}

// start runs an engine and a proxy before it.
func start(t *testing.T) (e *engine, proxy string, client *http.Client) {
	t.Helper()
	e = &engine{logs: make(chan struct{}), exited: make(chan struct{})}
	proxy, client = before(t, e)
	return e, proxy, client
}

// before runs a proxy before an engine.
func before(t *testing.T, e http.Handler) (proxy string, client *http.Client) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "engine"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: e}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	proxy = filepath.Join(dir, "proxy")
	own, err := socket(proxy)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- serve(ctx, own, filepath.Join(dir, "engine"), hclog.NewNullLogger()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return proxy, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return net.Dial("unix", proxy) },
	}}
}

func get(t *testing.T, c *http.Client, method, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, "http://x"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// later reads an answer's body aside.
func later(resp *http.Response) chan string {
	out := make(chan string, 1)
	go func() { b, _ := io.ReadAll(resp.Body); out <- string(b) }()
	return out
}

func TestPassesThrough(t *testing.T) {
	_, _, c := start(t)
	if got := <-later(get(t, c, "POST", "/v1.41/networks/create?name=a%2Fb")); got != "POST /v1.41/networks/create?name=a%2Fb docker" {
		t.Error(got)
	}
}

func TestExitIsToldWhenTheLogIsRead(t *testing.T) {
	e, _, c := start(t)
	log := get(t, c, "GET", "/v1.41/containers/c1/logs?follow=1")
	exit := later(get(t, c, "POST", "/v1.41/containers/c1/wait"))
	close(e.exited)
	select {
	case got := <-exit:
		t.Fatalf("told %q while the log was being read", got)
	case <-time.After(300 * time.Millisecond):
	}
	close(e.logs)
	if got := <-later(log); got != "begin\nend\n" {
		t.Errorf("log %q", got)
	}
	if got := <-exit; got != `{"StatusCode":7}` {
		t.Error(got)
	}
}

// The reader of a container that ends at once comes after its exit.
func TestExitWaitsForTheLogsReader(t *testing.T) {
	e, _, c := start(t)
	close(e.exited)
	close(e.logs)
	exit := later(get(t, c, "POST", "/containers/c1/wait"))
	time.Sleep(200 * time.Millisecond)
	log := later(get(t, c, "GET", "/containers/c1/logs?follow=true"))
	if got := <-log; got != "begin\nend\n" || len(exit) > 0 {
		t.Errorf("log %q, told before: %v", got, len(exit) > 0)
	}
	begin := time.Now()
	if <-exit; time.Since(begin) > time.Second {
		t.Error("told late")
	}
	// A log that nobody reads keeps nobody for long.
	begin = time.Now()
	<-later(get(t, c, "POST", "/containers/c2/wait"))
	if took := time.Since(begin); took < logAppears || took > logAppears+time.Second {
		t.Errorf("told after %s", took)
	}
}

func TestExecIsOverWhenItsOutputIsDelivered(t *testing.T) {
	_, proxy, c := start(t)
	conn, err := net.Dial("unix", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /v1.41/exec/e1/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	buf := bufio.NewReader(conn)
	resp, err := http.ReadResponse(buf, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	told := make(chan string, 1)
	go func() { told <- <-later(get(t, c, "GET", "/v1.41/exec/e1/json")) }()
	select {
	case <-told:
		t.Fatal("told while it runs")
	case <-time.After(300 * time.Millisecond):
	}
	_, _ = io.WriteString(conn, "input")
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(buf); err != nil || string(out) != "got input" {
		t.Errorf("output %q, %v", out, err)
	}
	if got := <-told; !strings.HasPrefix(got, "GET /v1.41/exec/e1/json") {
		t.Error(got)
	}
}

// A command that ends while its input is open, as in a terminal, is told as ended
// at once: its input ends only then.
func TestExecIsOverWhileItsInputIsOpen(t *testing.T) {
	_, proxy, c := start(t)
	conn, err := net.Dial("unix", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "POST /v1.41/exec/deaf/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
	buf := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(buf, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	if out, err := io.ReadAll(buf); err != nil || string(out) != "done" {
		t.Errorf("output %q, %v", out, err)
	}
	begin := time.Now()
	if got := <-later(get(t, c, "GET", "/v1.41/exec/deaf/json")); !strings.HasPrefix(got, "GET /v1.41/exec/deaf/json") || time.Since(begin) > execHold/2 {
		t.Errorf("%q after %s", got, time.Since(begin))
	}
}
