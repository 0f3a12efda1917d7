package nomadstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
)

// streamer answers the event stream with what each connection is scripted to
// say; the last script serves all later connections.
type streamer struct {
	*httptest.Server
	mu      sync.Mutex
	queries []string
	scripts []func(send func(string), done <-chan struct{})
}

func newStreamer(t *testing.T, scripts ...func(send func(string), done <-chan struct{})) *streamer {
	s := &streamer{scripts: scripts}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		n := len(s.queries)
		s.queries = append(s.queries, r.URL.RawQuery)
		s.mu.Unlock()
		if r.URL.Path != "/v1/event/stream" {
			http.NotFound(w, r)
			return
		}
		script := s.scripts[min(n, len(s.scripts)-1)]
		if script == nil {
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return
		}
		send := func(line string) {
			_, _ = io.WriteString(w, line+"\n")
			w.(http.Flusher).Flush()
		}
		send("{}")
		script(send, r.Context().Done())
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *streamer) query(i int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.queries) {
		return ""
	}
	return s.queries[i]
}

// log collects what a Follower did, in order.
type log struct{ ch chan string }

func (l *log) add(format string, args ...any) { l.ch <- fmt.Sprintf(format, args...) }

func (l *log) want(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-l.ch:
			if !strings.HasPrefix(got, w) {
				t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(3 * time.Second):
			t.Fatalf("%q did not come", w)
		}
	}
}

func (l *log) quiet(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case got := <-l.ch:
		t.Fatalf("unexpected %q", got)
	case <-time.After(d):
	}
}

// follow runs a Follower of s until the test ends, and fails if it leaves
// goroutines behind.
func follow(t *testing.T, s *streamer, change func(*Follower)) *log {
	t.Helper()
	transport := &http.Transport{}
	client, err := api.NewClient(&api.Config{Address: s.URL, HttpClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	l := &log{ch: make(chan string, 1000)}
	index := uint64(10)
	f := &Follower{
		Client: client, Namespace: "ns", Topics: map[api.Topic][]string{api.TopicJob: {"*"}}, Log: hclog.NewNullLogger(),
		List:   func(context.Context) (uint64, error) { l.add("list"); index += 10; return index - 10, nil },
		Handle: func(e Event) { l.add("event %s %d", e.Key, e.Index) },
		Health: func(err error) { l.add("health %v", err) },
	}
	if change != nil {
		change(f)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(3 * time.Second):
			t.Error("Run does not end with its context")
		}
		transport.CloseIdleConnections()
		for end := time.Now().Add(3 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				buf := make([]byte, 1<<16)
				t.Fatalf("%d goroutines before, %d after:\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
			}
		}
	})
	return l
}

func batch(index uint64, keys ...string) string {
	var events []string
	for _, k := range keys {
		events = append(events, fmt.Sprintf(`{"Topic":"Job","Key":%q,"Index":%d}`, k, index))
	}
	return fmt.Sprintf(`{"Index":%d,"Events":[%s]}`, index, strings.Join(events, ","))
}

func stay(send func(string), done <-chan struct{}) { <-done }

func TestFollowsFromTheList(t *testing.T) {
	s := newStreamer(t, func(send func(string), done <-chan struct{}) {
		send(batch(9, "old"))
		send(batch(10, "listed"))
		send(batch(11, "a", "b"))
		send("{}")
		send(batch(12, "c"))
		<-done
	})
	l := follow(t, s, nil)
	l.want(t, "list", "health <nil>", "health <nil>", "health <nil>", "health <nil>",
		"event a 11", "event b 11", "health <nil>", "health <nil>", "event c 12", "health <nil>")
	if q := s.query(0); !strings.Contains(q, "index=10") || !strings.Contains(q, "topic=Job%3A%2A") || !strings.Contains(q, "namespace=ns") {
		t.Errorf("query %q", q)
	}
}

func TestListsAgainAfterTheStream(t *testing.T) {
	s := newStreamer(t, func(send func(string), _ <-chan struct{}) { send(batch(11, "a")) }, stay)
	l := follow(t, s, nil)
	l.want(t, "list", "health <nil>", "health <nil>", "event a 11", "health <nil>",
		"health read Nomad's event stream: ", "list", "health <nil>", "health <nil>")
	if q := s.query(1); !strings.Contains(q, "index=20") {
		t.Errorf("the second stream starts with %q", q)
	}
}

func TestGarbageEndsTheStream(t *testing.T) {
	s := newStreamer(t, func(send func(string), done <-chan struct{}) { send("<html>"); <-done }, stay)
	l := follow(t, s, nil)
	l.want(t, "list", "health <nil>", "health <nil>", "health read Nomad's event stream: ", "list", "health <nil>")
}

func TestRefusedStream(t *testing.T) {
	s := newStreamer(t, nil, stay)
	l := follow(t, s, nil)
	l.want(t, "list", "health open Nomad's event stream: ", "list", "health <nil>")
}

func TestFailedListIsNotFollowed(t *testing.T) {
	s := newStreamer(t, stay)
	tries := 0
	l := follow(t, s, func(f *Follower) {
		list := f.List
		f.List = func(ctx context.Context) (uint64, error) {
			if tries++; tries < 3 {
				return 0, errors.New("no leader")
			}
			return list(ctx)
		}
	})
	l.want(t, "health no leader", "health no leader", "list", "health <nil>")
}

func TestHangingListIsGivenUp(t *testing.T) {
	s := newStreamer(t, stay)
	tries := 0
	l := follow(t, s, func(f *Follower) {
		f.patience = 30 * time.Millisecond
		list := f.List
		f.List = func(ctx context.Context) (uint64, error) {
			if tries++; tries == 1 {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return list(ctx)
		}
	})
	l.want(t, "health context deadline exceeded", "list", "health <nil>")
}

func TestSilenceEndsTheStream(t *testing.T) {
	s := newStreamer(t, stay)
	l := follow(t, s, func(f *Follower) { f.silence = 100 * time.Millisecond })
	l.want(t, "list", "health <nil>", "health <nil>", "health read Nomad's event stream: ", "list")
}

func TestHeartbeatsKeepTheStream(t *testing.T) {
	s := newStreamer(t, func(send func(string), done <-chan struct{}) {
		for range 8 {
			time.Sleep(60 * time.Millisecond)
			send("{}")
		}
		send(batch(11, "a"))
		<-done
	})
	l := follow(t, s, func(f *Follower) {
		f.silence, f.Health = 400*time.Millisecond, nil
	})
	l.want(t, "list", "event a 11")
	l.quiet(t, 100*time.Millisecond)
}

func TestServerAway(t *testing.T) {
	s := newStreamer(t, stay)
	s.CloseClientConnections()
	s.Close()
	l := follow(t, s, nil)
	l.want(t, "list", "health open Nomad's event stream: ", "list")
}

func TestPayloads(t *testing.T) {
	e := Event{Topic: api.TopicJob, Key: "j", Payload: []byte(`{"Job":{"ID":"j"},"Deleted":true}`)}
	if j, deleted, err := e.Job(); err != nil || j.ID != "j" || !deleted {
		t.Errorf("%v %v %v", j, deleted, err)
	}
	e.Payload = []byte(`{"Allocation":{"ID":"a"}}`)
	if a, err := e.Allocation(); err != nil || a.ID != "a" {
		t.Errorf("%v %v", a, err)
	}
	e.Payload = []byte(`{"Evaluation":{"ID":"e"},"Node":{"ID":"n"}}`)
	if v, err := e.Evaluation(); err != nil || v.ID != "e" {
		t.Errorf("%v %v", v, err)
	}
	if n, err := e.Node(); err != nil || n.ID != "n" {
		t.Errorf("%v %v", n, err)
	}
	e.Payload = []byte(`{"Job":`)
	if _, _, err := e.Job(); err == nil || !strings.Contains(err.Error(), "Job event j") {
		t.Errorf("a broken payload: %v", err)
	}
}

func TestNoTopics(t *testing.T) {
	s := newStreamer(t, stay)
	l := follow(t, s, func(f *Follower) { f.Topics = nil })
	l.want(t, "list", "health open Nomad's event stream: no topics")
}
