package prober

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
)

// The pauses between two calls. Nomad's docker driver ends some calls at once
// (hashicorp/nomad#27146), so the first is short.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
)

// stream keeps one call of `companion probes` for a pod's network probes.
type stream struct {
	Options
	log    hclog.Logger
	report func(probes.Report)
	made   func(probes.Attempt)

	mu      sync.Mutex
	target  Target
	list    []probes.Probe
	changed chan struct{} // closed by the next update
	// results are those of the current runs, and handed the runs that some call
	// was handed.
	results map[key]result
	handed  map[key]string
}

type key struct {
	container string
	kind      probes.Kind
}

type result struct {
	run string
	ok  bool
}

func newStream(o Options, log hclog.Logger, report func(probes.Report), made func(probes.Attempt)) *stream {
	return &stream{Options: o, log: log, report: report, made: made, changed: make(chan struct{}), results: map[key]result{}, handed: map[key]string{}}
}

func (s *stream) update(t Target, list []probes.Probe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target, s.list = t, list
	close(s.changed)
	s.changed = make(chan struct{})
}

// run keeps a call open as long as there is something to probe, and once there
// was, until ctx ends.
func (s *stream) run(ctx context.Context) {
	pause := firstPause
	for {
		s.mu.Lock()
		target, idle, changed := s.target, s.target.Task == "" || len(s.list) == 0, s.changed
		s.mu.Unlock()
		var timer <-chan time.Time
		if !idle {
			start := s.Clock.Now()
			err := s.call(ctx, target)
			if ctx.Err() != nil {
				return
			}
			if s.Clock.Since(start) > maxPause {
				pause = firstPause
			}
			s.log.Debug("the call that runs the network probes has ended", "error", err, "next", pause)
			timer, changed = s.Clock.After(pause), nil
			pause = min(2*pause, maxPause)
		}
		select {
		case <-timer:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// call runs the companion's command once.
func (s *stream) call(ctx context.Context, t Target) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat := s.Clock.NewTicker(companion.ProbesBeat)
	defer beat.Stop()
	silence := s.Clock.NewTimer(companion.ProbesSilence)
	defer silence.Stop()
	heard := make(chan struct{}, 1)
	go watch(ctx, cancel, silence, heard)
	var said tail
	_, err := s.Exec.Run(ctx, taskexec.Command{
		Namespace: t.Namespace, AllocID: t.AllocID, Task: t.Task, Driver: "docker", Handshake: true,
		Argv: []string{"/companion", "probes", s.Agent},
		In:   &feed{ctx: ctx, stream: s, beat: beat.C(), resume: true},
		Out:  &reports{ctx: ctx, stream: s, heard: heard}, ErrOut: &said,
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return errors.Join(err, said.error())
}

var errSilent = errors.New("nothing was heard from it for " + companion.ProbesSilence.String())

// watch ends a call that has gone without a word.
func watch(ctx context.Context, cancel context.CancelCauseFunc, silence clock.Timer, heard <-chan struct{}) {
	for {
		select {
		case <-heard:
			silence.Reset(companion.ProbesSilence)
		case <-silence.C():
			cancel(errSilent)
		case <-ctx.Done():
			return
		}
	}
}

// line is what the next line to the companion is. A new call is told what is
// known, so that it neither finds a ready container unready nor probes all of
// them at once. What is settled is not asked for any more.
func (s *stream) line(resume bool) (line []byte, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]probes.Probe, 0, len(s.list))
	for _, p := range s.list {
		k := key{p.Container, p.Kind}
		r, known := s.results[k]
		known = known && r.run == p.Run
		switch {
		case known && (p.Kind == probes.Startup || p.Kind == probes.Liveness && !r.ok):
			continue
		case resume && known:
			p.Known = new(r.ok)
		case resume && p.Kind == probes.Liveness && s.handed[k] == p.Run:
			p.Known = new(true)
		}
		s.handed[k] = p.Run
		list = append(list, p)
	}
	line, err := json.Marshal(list)
	if err != nil {
		s.log.Error("the network probes cannot be written down", "error", err)
		return []byte("[]\n"), s.changed
	}
	return append(line, '\n'), s.changed
}

// hear takes a line of the companion's.
func (s *stream) hear(line []byte) {
	var said struct {
		probes.Report
		companion.ProbesMade
	}
	switch err := json.Unmarshal(line, &said); {
	case err != nil:
		s.log.Warn("what the companion says of its probes is not understood", "error", err)
	case len(said.Attempts) > 0:
		for _, a := range said.Attempts {
			s.made(a)
		}
	default:
		s.take(said.Report)
	}
}

// take hands a report on.
func (s *stream) take(r probes.Report) {
	if r.Result != nil {
		s.mu.Lock()
		s.results[key{r.Container, r.Kind}] = result{r.Run, *r.Result}
		s.mu.Unlock()
	}
	s.report(r)
}

// feed is a call's standard input: the list whenever it changes, or a sign of
// life.
type feed struct {
	ctx     context.Context
	stream  *stream
	beat    <-chan time.Time
	resume  bool // until the first line
	changed <-chan struct{}
	last    []byte
	rest    []byte
}

func (f *feed) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.changed != nil {
			select {
			case <-f.changed:
			case <-f.beat:
				f.rest = []byte("\n")
				continue
			case <-f.ctx.Done():
				return 0, io.EOF
			}
		}
		var line []byte
		line, f.changed = f.stream.line(f.resume)
		if !f.resume && bytes.Equal(line, f.last) {
			continue
		}
		f.resume, f.last, f.rest = false, line, line
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// maxLine bounds a line of the companion.
const maxLine = 64 << 10

// reports is a call's standard output.
type reports struct {
	ctx    context.Context
	stream *stream
	heard  chan<- struct{}
	buf    []byte
}

func (r *reports) Write(p []byte) (int, error) {
	r.buf = append(r.buf, p...)
	for {
		line, rest, whole := bytes.Cut(r.buf, []byte("\n"))
		if !whole {
			break
		}
		select {
		case r.heard <- struct{}{}:
		default:
		}
		if len(line) > 0 && r.ctx.Err() == nil {
			r.stream.hear(line)
		}
		r.buf = append(r.buf[:0], rest...)
	}
	if len(r.buf) > maxLine {
		r.buf = nil
	}
	return len(p), nil
}

// tail keeps the end of what a call complains of.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-1024):]
	return len(p), nil
}

func (t *tail) error() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := bytes.TrimSpace(t.buf); len(s) > 0 {
		return errors.New(string(s))
	}
	return nil
}
