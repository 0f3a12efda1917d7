package kubelet

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// fakeFS serves the files below a directory by Nomad's file API.
type fakeFS struct {
	dir string
	// away makes it an agent that has restarted and does not know anything yet; cut is closed, and made anew, to end all streams.
	away atomic.Bool
	gone atomic.Bool // the allocation
	mu   sync.Mutex
	cut  chan struct{}
	// calls counts requests, refused those while it is away, sent the bytes of streams and files.
	calls, refused, sent atomic.Int64
}

func (f *fakeFS) restart() {
	f.away.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cut)
	f.cut = make(chan struct{})
}

func (f *fakeFS) cutting() chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

func (f *fakeFS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := f.calls.Add(1)
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/client/fs/"), "/")
	if f.gone.Load() {
		http.Error(w, "Unknown allocation \"a\"", http.StatusNotFound)
		return
	}
	if f.away.Load() {
		f.refused.Add(1)
		// As one that has restarted answers, with access control.
		code := [...]int{http.StatusNotFound, http.StatusForbidden, http.StatusInternalServerError}[n%3]
		http.Error(w, "Unknown allocation \"a\"", code)
		return
	}
	q := r.URL.Query()
	name := filepath.Join(f.dir, filepath.FromSlash(q.Get("path")))
	offset, _ := strconv.ParseInt(q.Get("offset"), 10, 64)
	switch parts[0] {
	case "ls":
		entries, err := os.ReadDir(name)
		if err != nil {
			http.Error(w, "no such file or directory", http.StatusNotFound)
			return
		}
		out := []*api.AllocFileInfo{}
		for _, e := range entries {
			if fi, err := e.Info(); err == nil {
				out = append(out, &api.AllocFileInfo{Name: e.Name(), IsDir: e.IsDir(), Size: fi.Size(), ModTime: fi.ModTime()})
			}
		}
		_ = json.NewEncoder(w).Encode(out)
	case "readat", "stream":
		file, err := os.Open(name)
		if err != nil {
			http.Error(w, "stat "+name+": no such file or directory", http.StatusBadRequest)
			return
		}
		defer file.Close()
		_, _ = file.Seek(offset, io.SeekStart)
		if parts[0] == "stream" {
			f.follow(w, r, file)
			return
		}
		limit, _ := strconv.ParseInt(q.Get("limit"), 10, 64)
		n, _ := io.Copy(w, io.LimitReader(file, limit))
		f.sent.Add(n)
	default:
		http.Error(w, "not here", http.StatusInternalServerError)
	}
}

// follow sends what a file grows by, in frames, and heartbeats.
func (f *fakeFS) follow(w http.ResponseWriter, r *http.Request, file *os.File) {
	enc, cut := json.NewEncoder(w), f.cutting()
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	buf := make([]byte, 64<<10)
	for {
		n, _ := file.Read(buf)
		if n > 0 {
			f.sent.Add(int64(n))
			if enc.Encode(&api.StreamFrame{File: file.Name(), Data: buf[:n]}) != nil {
				return
			}
		}
		select {
		case <-beat.C:
			_ = enc.Encode(&api.StreamFrame{})
		default:
		}
		w.(http.Flusher).Flush()
		if n > 0 {
			continue
		}
		if _, err := os.Stat(file.Name()); err != nil {
			_ = enc.Encode(&api.StreamFrame{FileEvent: "file deleted"})
			return
		}
		select {
		case <-look.C:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// collector writes a task's log files as Nomad's does (client/logmon/logging/
// rotator.go): files end at lines, the last three are kept.
type collector struct {
	logs, task string
	most       int64
	late       time.Duration // at most so late
	hold       sync.Mutex    // held: nothing is written
	index      [2]int
	size       [2]int64
}

func (c *collector) write(t *testing.T, k int, p []byte) {
	c.hold.Lock()
	defer c.hold.Unlock()
	if c.late > 0 {
		time.Sleep(rand.N(c.late))
	}
	if c.size[k]+int64(len(p)) > c.most {
		c.index[k]++
		c.size[k] = 0
		_ = os.Remove(c.path(k, c.index[k]-3))
	}
	f, err := os.OpenFile(c.path(k, c.index[k]), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	_, _ = f.Write(p)
	c.size[k] += int64(len(p))
}

func (c *collector) path(k, index int) string {
	return filepath.Join(c.logs, fmt.Sprintf("%s.%s.%d", c.task, kinds[k], index))
}

// dockerRun is a run of the container.
type dockerRun struct {
	id    string
	start time.Time
	// said are the frames of its log; closed at its end.
	said chan []byte
	over atomic.Bool
	read chan struct{} // closed when the driver has read it all
}

// say lets the container write to stdout, 1, or stderr, 2.
func (r *dockerRun) say(stream byte, text string) time.Time {
	at := time.Now()
	r.sayAt(stream, text, at)
	return at
}

func (r *dockerRun) sayAt(stream byte, text string, at time.Time) {
	text = at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " " + text
	head := []byte{stream, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	r.said <- append(head, text...)
}

// rig is a client with a docker proxy and a task web, Nomad's files, and the
// kubelet API before them.
type rig struct {
	t      *testing.T
	fs     *fakeFS
	files  *collector
	docker *http.Client // by the proxy
	nomad  *http.Client
	pods   *pods
	url    string
	mu     sync.Mutex
	byID   map[string]*dockerRun
}

// onSocket serves on a Unix socket until the test ends.
func onSocket(t *testing.T, path string, h http.Handler) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, fs: &fakeFS{dir: dir, cut: make(chan struct{})}, byID: map[string]*dockerRun{}}
	r.files = &collector{logs: filepath.Join(dir, "alloc", "logs"), task: "web", most: 10 << 20}
	for _, d := range []string{r.files.logs, filepath.Join(dir, "web")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sockets := t.TempDir()
	engine, proxy := filepath.Join(sockets, "e"), filepath.Join(sockets, "p")
	onSocket(t, engine, http.HandlerFunc(r.engine))
	onSocket(t, proxy, dockerproxy.New(engine, hclog.NewNullLogger()))
	r.docker = &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", proxy) },
	}}
	nomadSrv := httptest.NewServer(r.fs)
	t.Cleanup(nomadSrv.Close)
	r.nomad = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 48}} // as package connect has it
	nomad, err := api.NewClient(&api.Config{Address: nomadSrv.URL, HttpClient: r.nomad})
	if err != nil {
		t.Fatal(err)
	}
	p := testPod()
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	r.pods = &pods{pod: p, alloc: "a"}
	base := serve(t, nomad, r.pods, func(o *Options) { o.Runtimes = map[string]translate.Runtime{"": {Driver: "docker"}} })
	r.url = base + "/containerLogs/default/p/web?"
	return r
}

// engine is Docker's.
func (r *rig) engine(w http.ResponseWriter, q *http.Request) {
	parts := strings.Split(q.URL.Path, "/")
	r.mu.Lock()
	run := r.byID[parts[2]]
	r.mu.Unlock()
	switch parts[3] {
	case "start":
		w.WriteHeader(http.StatusNoContent)
	case "json":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"State":      map[string]any{"Running": !run.over.Load(), "StartedAt": run.start},
			"Config":     map[string]any{"Env": []string{"NOMAD_JOB_ID=k8s-c-1"}},
			"HostConfig": map[string]any{"Binds": []string{filepath.Join(r.fs.dir, "web", "local") + ":/local"}},
		})
	case "logs":
		w.(http.Flusher).Flush()
		for f := range run.said {
			_, _ = w.Write(f)
			if len(run.said) == 0 {
				w.(http.Flusher).Flush()
			}
		}
	}
}

// start starts the container: Docker does, the driver reads its log, Nomad tells.
func (r *rig) start() *dockerRun {
	r.t.Helper()
	run := &dockerRun{start: time.Now(), said: make(chan []byte, 1000), read: make(chan struct{})}
	run.id = strconv.FormatInt(run.start.UnixNano(), 10)
	r.mu.Lock()
	r.byID[run.id] = run
	r.mu.Unlock()
	resp, err := r.docker.Post("http://x/containers/"+run.id+"/start", "", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp, err = r.docker.Get("http://x/containers/" + run.id + "/logs?follow=1&stdout=1&stderr=1"); err != nil {
		r.t.Fatal(err)
	}
	go func() {
		defer close(run.read)
		defer resp.Body.Close()
		for {
			var head [8]byte
			if _, err := io.ReadFull(resp.Body, head[:]); err != nil {
				return
			}
			p := make([]byte, binary.BigEndian.Uint32(head[4:]))
			if _, err := io.ReadFull(resp.Body, p); err != nil {
				r.t.Error(err)
				return
			}
			r.files.write(r.t, int(head[0]-1), p)
		}
	}()
	r.tell(func(ts *api.TaskState, st *corev1.ContainerStatus) {
		ts.State, ts.StartedAt = "running", time.Now()
		st.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	})
	return run
}

// end ends a run; its state is waiting, for the next one, or terminated.
func (r *rig) end(run *dockerRun, waiting bool) {
	r.t.Helper()
	run.over.Store(true)
	close(run.said)
	<-run.read
	r.tell(func(ts *api.TaskState, st *corev1.ContainerStatus) {
		ts.State = "pending"
		ts.Events = append(ts.Events, &api.TaskEvent{Type: api.TaskTerminated, Time: time.Now().UnixNano()})
		last := &corev1.ContainerStateTerminated{FinishedAt: metav1.Now()}
		st.State = corev1.ContainerState{Terminated: last}
		if waiting {
			st.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
		}
		st.LastTerminationState.Terminated = last
	})
}

// tell changes what Nomad and the pod's status say.
func (r *rig) tell(change func(*api.TaskState, *corev1.ContainerStatus)) {
	r.pods.mu.Lock()
	defer r.pods.mu.Unlock()
	ts := &api.TaskState{}
	if old := r.pods.tasks["web"]; old != nil {
		*ts = *old
		ts.Events = slices.Clone(ts.Events)
	}
	pod := r.pods.pod.DeepCopy()
	change(ts, &pod.Status.ContainerStatuses[0])
	r.pods.pod, r.pods.tasks = pod, map[string]*api.TaskState{"web": ts}
}

// get reads a log once.
func (r *rig) get(query string) string {
	r.t.Helper()
	code, body := fetch(r.t, r.url+query)
	if code != http.StatusOK {
		r.t.Errorf("%s: %d %s", query, code, body)
	}
	return body
}

// collect reads a log as it comes.
func (r *rig) collect(query string) (got func() string, over chan struct{}) {
	r.t.Helper()
	resp := request(r.t, r.t.Context(), "good", r.url+query)
	var mu sync.Mutex
	var buf bytes.Buffer
	over = make(chan struct{})
	go func() {
		defer close(over)
		p := make([]byte, 4096)
		for {
			n, err := resp.Body.Read(p)
			mu.Lock()
			buf.Write(p[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return func() string { mu.Lock(); defer mu.Unlock(); return buf.String() }, over
}

func until(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}
