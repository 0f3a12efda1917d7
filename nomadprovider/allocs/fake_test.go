package allocs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const cluster = "c1"

// nomad is what a Nomad server answers: its lists, and the events sent by
// hand.
type nomad struct {
	*httptest.Server
	mu       sync.Mutex
	index    uint64
	pageSize int
	jobs     []*api.JobListStub
	allocs   []*api.AllocationListStub
	infos    map[string]*api.Allocation
	evals    map[string][]*api.Evaluation
	fail     map[string]int // by path
	requests []string
	lines    chan string
	cut      chan struct{}
}

func newNomad(t *testing.T) *nomad {
	n := &nomad{
		index: 100, infos: map[string]*api.Allocation{}, evals: map[string][]*api.Evaluation{}, fail: map[string]int{},
		lines: make(chan string, 100), cut: make(chan struct{}),
	}
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.Close)
	return n
}

func (n *nomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/event/stream" {
		n.stream(w, r)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.requests = append(n.requests, r.URL.Path)
	if code := n.fail[r.URL.Path]; code != 0 {
		http.Error(w, "fails as told, allocation 404", code)
		return
	}
	w.Header().Set("X-Nomad-Index", fmt.Sprint(n.index))
	w.Header().Set("X-Nomad-LastContact", "0") // without it the client reads no further header
	var out any
	switch path := r.URL.Path; {
	case path == "/v1/jobs":
		out = page(n.jobs, n.pageSize, w, r)
	case path == "/v1/allocations":
		out = page(n.allocs, n.pageSize, w, r)
	case strings.HasPrefix(path, "/v1/allocation/"):
		a := n.infos[strings.TrimPrefix(path, "/v1/allocation/")]
		if a == nil {
			http.Error(w, "alloc not found", http.StatusNotFound)
			return
		}
		out = a
	case strings.HasSuffix(path, "/evaluations"):
		out = n.evals[strings.Split(path, "/")[3]]
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func page[T any](list []T, size int, w http.ResponseWriter, r *http.Request) []T {
	if size == 0 {
		return list
	}
	from := 0
	_, _ = fmt.Sscan(r.URL.Query().Get("next_token"), &from)
	to := min(from+size, len(list))
	if to < len(list) {
		w.Header().Set("X-Nomad-NextToken", fmt.Sprint(to))
	}
	return list[from:to]
}

func (n *nomad) stream(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	cut := n.cut
	n.mu.Unlock()
	flush := func(line string) {
		_, _ = io.WriteString(w, line+"\n")
		w.(http.Flusher).Flush()
	}
	flush("{}")
	for {
		select {
		case l := <-n.lines:
			flush(l)
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// change alters what the lists say.
func (n *nomad) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// reconnect ends the stream, so that the cache lists again.
func (n *nomad) reconnect() {
	n.change(func() { close(n.cut); n.cut = make(chan struct{}) })
}

func (n *nomad) send(topic api.Topic, key string, index uint64, keys []string, payload any) {
	p, err := json.Marshal(payload)
	if err != nil {
		panic(err)
	}
	e, _ := json.Marshal(map[string]any{"Topic": topic, "Key": key, "Index": index, "FilterKeys": keys, "Payload": json.RawMessage(p)})
	n.lines <- fmt.Sprintf(`{"Index":%d,"Events":[%s]}`, index, e)
}

func (n *nomad) sendJob(id string, index uint64, stopped, deleted bool) {
	n.send(api.TopicJob, id, index, nil, map[string]any{
		"Job":     map[string]any{"ID": id, "Name": "ns/" + id, "Namespace": "default", "Stop": stopped, "CreateIndex": 1, "ModifyIndex": index},
		"Deleted": deleted,
	})
}

func (n *nomad) sendAlloc(job, id string, index uint64, status string) {
	n.send(api.TopicAllocation, id, index, []string{job}, map[string]any{"Allocation": map[string]any{
		"ID": id, "JobID": job, "ModifyIndex": index, "CreateIndex": 50, "ClientStatus": status, "Job": map[string]any{"ID": job},
	}})
}

func id(uid string) string { return translate.JobID(cluster, types.UID(uid)) }

func jobStub(id string, index uint64) *api.JobListStub {
	return &api.JobListStub{ID: id, Name: "ns/" + id, CreateIndex: 1, ModifyIndex: index}
}

func allocStub(job, id string, created uint64, status string) *api.AllocationListStub {
	return &api.AllocationListStub{ID: id, JobID: job, CreateIndex: created, ModifyIndex: created, ClientStatus: status}
}

// view runs a cache of n until the test ends.
type view struct {
	*Cache
	t      *testing.T
	notify chan types.UID
}

func watch(t *testing.T, n *nomad) *view {
	t.Helper()
	transport := &http.Transport{}
	client, err := api.NewClient(&api.Config{Address: n.URL, HttpClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	v := &view{t: t, notify: make(chan types.UID, 1000)}
	v.Cache = New(client, []string{"default"}, cluster, func(uid types.UID) { v.notify <- uid }, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { v.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		transport.CloseIdleConnections()
	})
	wait, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if err := v.WaitForSync(wait); err != nil {
		t.Fatalf("not synced: %v (%v)", err, v.Current())
	}
	return v
}

// told waits for one notification of each pod, in any order, and no other.
func (v *view) told(uids ...types.UID) {
	v.t.Helper()
	want := map[types.UID]bool{}
	for _, u := range uids {
		want[u] = true
	}
	for len(want) > 0 {
		select {
		case uid := <-v.notify:
			if !want[uid] {
				v.t.Fatalf("told of %s", uid)
			}
			delete(want, uid)
		case <-time.After(3 * time.Second):
			v.t.Fatalf("not told of %v", want)
		}
	}
}

// eventually waits for what is not told.
func (v *view) eventually(what string, cond func() bool) {
	v.t.Helper()
	for end := time.Now().Add(3 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			v.t.Fatal(what)
		}
	}
}

func (v *view) silent() {
	v.t.Helper()
	select {
	case uid := <-v.notify:
		v.t.Fatalf("told of %s", uid)
	default:
	}
}

func (v *view) entry(uid types.UID) Entry {
	v.t.Helper()
	e, ok := v.Get(uid)
	if !ok {
		v.t.Fatalf("no entry of %s", uid)
	}
	return e
}

func (v *view) gone(uid types.UID) {
	v.t.Helper()
	if e, ok := v.Get(uid); ok {
		v.t.Fatalf("there is an entry of %s: %+v", uid, e)
	}
}
