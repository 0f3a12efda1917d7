package dockerproxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// logEngine has one container, c1, whose log it is told.
type logEngine struct {
	binds   []string
	env     []string
	tty     bool
	started time.Time
	// log writes the log; stamps says whether times are asked for.
	log  func(w io.Writer, stamps bool)
	runs bool
}

func (e *logEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/containers/c1/start"):
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(r.URL.Path, "/containers/c1/json"):
		_ = json.NewEncoder(w).Encode(map[string]any{
			"State":      map[string]any{"Running": e.runs, "StartedAt": e.started},
			"Config":     map[string]any{"Tty": e.tty, "Env": e.env},
			"HostConfig": map[string]any{"Binds": e.binds},
		})
	case strings.HasSuffix(r.URL.Path, "/containers/c1/logs"):
		e.log(flusher{w}, r.URL.Query().Get("timestamps") != "")
	}
}

type flusher struct{ http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

func frame(stream byte, text string) []byte {
	head := []byte{stream, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	return append(head, text...)
}

// theirs is an allocation's directory with a task c, and an engine for it.
func theirs(t *testing.T) (*logEngine, place) {
	t.Helper()
	dir := t.TempDir()
	p := place{dir: filepath.Join(dir, "c"), logs: filepath.Join(dir, "alloc", "logs"), task: "c"}
	for _, d := range []string{p.dir, p.logs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &logEngine{
		binds: []string{"/v:/data", p.dir + "/local:/local", p.dir + "/secrets:/secrets"}, env: []string{"A=B", "NOMAD_JOB_ID=k8s-c-1"},
		started: time.Now(),
	}, p
}

// write lets Nomad's collector write.
func (p place) write(t *testing.T, k logindex.Kind, file int64, n int) {
	t.Helper()
	f, err := os.OpenFile(p.file(k, file), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		t.Fatal(err)
	}
}

// index reads a segment.
func (p place) index(t *testing.T, s logindex.Segment) (h logindex.Header, records []logindex.Record) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, s.Name()))
	if err != nil {
		t.Fatal(err)
	}
	h, n, err := logindex.ParseHeader(data)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	for c, data := logindex.NewCoder(h), data[n:]; len(data) > 0; data = data[n:] {
		var r logindex.Record
		if r, n, err = c.Next(data); err != nil || n == 0 {
			t.Fatal(n, err)
		}
		records = append(records, r)
	}
	return h, records
}

func (p place) list(t *testing.T) []logindex.Segment {
	t.Helper()
	s, err := p.segments()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func show(records []logindex.Record) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "%d:%d/%d", r.Kind, r.Bytes, r.Lines)
		if r.Continued {
			b.WriteString("+")
		}
		b.WriteString(" ")
	}
	return strings.TrimSpace(b.String())
}

// The driver gets the log as it is, and the index has its times.
func TestLogIsIndexed(t *testing.T) {
	e, p := theirs(t)
	p.write(t, logindex.Stdout, 3, 7) // of a run before
	at := e.started.Add(time.Second).Truncate(time.Microsecond)
	stamp := func(i int) string {
		return at.Add(time.Duration(i)*time.Millisecond).UTC().Format("2006-01-02T15:04:05.000000000Z07:00") + " "
	}
	long := strings.Repeat("y", 40_000)
	e.log = func(w io.Writer, stamps bool) {
		if !stamps {
			t.Error("times are not asked for")
		}
		for i, f := range [][]byte{
			frame(1, stamp(0)+"one\n"), frame(2, stamp(1)+"two\n"), frame(1, stamp(2)+long), frame(1, stamp(2)+"z\n"),
			frame(3, "Error grabbing logs: it rains\n"), frame(2, "no time\n"), frame(1, stamp(5)+"\n"),
		} {
			if i == 2 {
				_, _ = w.Write(f[:5]) // cut anywhere
				f = f[5:]
			}
			_, _ = w.Write(f)
		}
	}
	_, c := before(t, e)
	if resp := get(t, c, "POST", "/v1.41/containers/c1/start"); resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}
	first := logindex.Segment{Run: e.started.UnixNano()}
	h, records := p.index(t, first) // before Nomad knows
	if h.Begin != [2]logindex.Position{{File: 3, At: 7}, {}} || len(records) > 0 {
		t.Errorf("%+v %v", h, records)
	}
	got := <-later(get(t, c, "GET", "/v1.41/containers/c1/logs?follow=1&stdout=1&stderr=1"))
	want := string(bytes.Join([][]byte{
		frame(1, "one\n"), frame(2, "two\n"), frame(1, long), frame(1, "z\n"), frame(3, "Error grabbing logs: it rains\n"), frame(2, "no time\n"), frame(1, "\n"),
	}, nil))
	if got != want {
		t.Errorf("the driver got %d bytes, want %d", len(got), len(want))
	}
	_, records = p.index(t, first)
	if got := show(records); got != "0:4/1 1:4/1 0:32768/1 0:7232/0+ 0:2/0+ 1:8/1 0:1/1 3:0/0" {
		t.Error(got)
	}
	if !records[0].When().Equal(at) || !records[1].When().Equal(at.Add(time.Millisecond)) || !records[3].When().Equal(at.Add(2*time.Millisecond)) {
		t.Errorf("%v", records)
	}
	if n := len(p.list(t)); n != 1 {
		t.Errorf("%d segments", n)
	}
}

// A terminal's output has no frames and no times.
func TestLogOfATerminal(t *testing.T) {
	e, p := theirs(t)
	e.tty, e.runs = true, true
	e.log = func(w io.Writer, stamps bool) {
		if stamps {
			t.Error("times are asked for")
		}
		for _, s := range []string{"hi\r\n", "$ ", "exit\r\n"} {
			_, _ = io.WriteString(w, s)
			time.Sleep(2 * slot)
		}
	}
	_, c := before(t, e)
	if got := <-later(get(t, c, "GET", "/containers/c1/logs?follow=1")); got != "hi\r\n$ exit\r\n" {
		t.Errorf("%q", got)
	}
	_, records := p.index(t, logindex.Segment{Run: e.started.UnixNano()})
	// It runs still: the reader has lost its connection and comes again.
	if got := show(records); got != "0:4/1 0:2/1 0:6/0+ 2:0/0" {
		t.Error(got)
	}
	<-later(get(t, c, "GET", "/containers/c1/logs?follow=1"))
	if n := len(p.list(t)); n != 2 {
		t.Errorf("%d segments", n)
	}
}

// Containers of others are left alone, and so are logs that are not followed.
func TestNoIndex(t *testing.T) {
	for name, r := range map[string]struct {
		change func(*logEngine)
		query  string
	}{
		"no task":      {func(e *logEngine) { e.binds = []string{"/x/data:/local"} }, "?follow=1"},
		"others' job":  {func(e *logEngine) { e.env = []string{"NOMAD_JOB_ID=web"} }, "?follow=1"},
		"not followed": {func(*logEngine) {}, "?stdout=1"},
	} {
		e, p := theirs(t)
		r.change(e)
		e.log = func(w io.Writer, stamps bool) { fmt.Fprint(w, "stamps ", stamps) }
		_, c := before(t, e)
		get(t, c, "POST", "/containers/c1/start")
		if got := <-later(get(t, c, "GET", "/containers/c1/logs"+r.query)); got != "stamps false" {
			t.Errorf("%s: %q", name, got)
		}
		if s := p.list(t); (len(s) > 0) != (name == "not followed") {
			t.Errorf("%s: %v", name, s)
		}
	}
}

// One record a piece, until there are too many.
func TestRecordsAreBounded(t *testing.T) {
	_, p := theirs(t)
	start := time.Now()
	r := p.record(start.UnixNano(), hclog.NewNullLogger())
	const n = 100_000
	for i := range n {
		// 100 lines a millisecond.
		r.add(logindex.Kind(i%2), []byte("line\n"), start.Add(time.Duration(i)*10*time.Microsecond))
	}
	r.close(true)
	count, lines, size := 0, int64(0), int64(0)
	for _, s := range p.list(t) {
		_, records := p.index(t, s)
		for _, x := range records {
			if !x.Kind.Mark() {
				count++
			}
			lines, size = lines+x.Lines, size+x.Bytes
		}
	}
	if slots := n / 1000; count > slots*(burst+4) || count < slots*burst || lines != n || size != 5*n {
		t.Errorf("%d records of %d lines and %d bytes", count, lines, size)
	}
}

// A segment for each of Nomad's files, of which the last ones are kept, and those
// of two runs.
func TestSegments(t *testing.T) {
	_, p := theirs(t)
	start := time.Now()
	line := bytes.Repeat([]byte{'x'}, 1<<10)
	line[len(line)-1] = '\n'
	for run := range 3 {
		r := p.record(start.UnixNano()+int64(run), hclog.NewNullLogger())
		if run < 2 {
			r.close(true)
			continue
		}
		p.write(t, logindex.Stdout, 0, 0)
		for i := range 12 << 10 { // 12 MB, of which Nomad writes a file of one less a line
			r.add(logindex.Stdout, line, start.Add(time.Duration(i)*time.Millisecond))
			written := int64(i+1) << 10
			const most = 1<<20 - 1<<10
			p.write(t, logindex.Stdout, written/most, int(written%most))
			if written%most == 0 && written > 0 {
				p.write(t, logindex.Stdout, written/most-1, most)
			}
		}
		r.close(true)
	}
	segments := p.list(t)
	if len(segments) != keptSegments || segments[0].Number == 0 || segments[0].Run != start.UnixNano()+2 {
		t.Fatalf("%v", segments)
	}
	const most = 1<<20 - 1<<10
	for i, s := range segments {
		h, records := p.index(t, s)
		var sum, want int64
		for _, x := range records {
			sum += x.Bytes
		}
		if i+1 < len(segments) {
			next, _ := p.index(t, segments[i+1])
			want = (next.Begin[0].File-h.Begin[0].File)*most + next.Begin[0].At - h.Begin[0].At
		} else {
			want = 12<<20 - h.Begin[0].File*most - h.Begin[0].At
		}
		if sum != want || h.Begin[0].At >= most || records[len(records)-1].Kind != map[bool]logindex.Kind{true: logindex.Over, false: logindex.Next}[i+1 == len(segments)] {
			t.Errorf("segment %d from %v: %d bytes, want %d", i, h.Begin[0], sum, want)
		}
	}
}

// An index that cannot be written is removed.
func TestIndexThatFails(t *testing.T) {
	_, p := theirs(t)
	r := p.record(time.Now().UnixNano(), hclog.NewNullLogger())
	_ = r.f.Close()
	r.add(logindex.Stdout, []byte("x\n"), time.Now())
	r.close(true)
	if s := p.list(t); len(s) > 0 {
		t.Errorf("%v", s)
	}
}

// What Nomad wrote of the run before between the start and the reader's coming
// does not shift the index.
func TestLateBytesOfTheRunBefore(t *testing.T) {
	e, p := theirs(t)
	e.log = func(w io.Writer, _ bool) { _, _ = w.Write(frame(1, "2026-01-02T03:04:05Z new\n")) }
	_, c := before(t, e)
	get(t, c, "POST", "/containers/c1/start")
	p.write(t, logindex.Stdout, 0, 9)
	<-later(get(t, c, "GET", "/containers/c1/logs?follow=1"))
	s := p.list(t)
	if len(s) != 2 {
		t.Fatalf("%v", s)
	}
	if _, records := p.index(t, s[0]); show(records) != "2:0/0" {
		t.Error(show(records))
	}
	if h, records := p.index(t, s[1]); h.Begin[0].At != 9 || show(records) != "0:4/1 3:0/0" {
		t.Errorf("%v %s", h, show(records))
	}
}

// The prefix by which the proxy knows nomad-kubelet's jobs is theirs.
func TestOwnJobs(t *testing.T) {
	for _, id := range []string{translate.JobID("c", "1"), translate.CompanionID("c", "1", "n")} {
		if !strings.HasPrefix("NOMAD_JOB_ID="+id, ownJob) {
			t.Error(id)
		}
	}
}

// endless is a log of lines without end.
type endless []byte

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

// BenchmarkLog is what a line costs on its way.
func BenchmarkLog(b *testing.B) {
	text := frame(1, "2026-01-02T03:04:05.123456789Z "+strings.Repeat("x", 99)+"\n")
	dir := b.TempDir()
	r := place{dir: dir, logs: dir, task: "c"}.record(time.Now().UnixNano(), hclog.NewNullLogger())
	t := &logTap{in: bufio.NewReaderSize(endless(text), 2*piece), out: bufio.NewWriter(io.Discard), flush: func() error { return nil }, add: r.add}
	b.SetBytes(100)
	b.ReportAllocs()
	for b.Loop() {
		head, err := t.in.Peek(frameHead)
		if err != nil {
			b.Fatal(err)
		}
		stream, n := head[0], int(binary.BigEndian.Uint32(head[4:]))
		_, _ = t.in.Discard(frameHead)
		if err := t.frame(stream, n); err != nil {
			b.Fatal(err)
		}
	}
	r.close(true)
}
