package dockerproxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
)

const (
	// ownJob begins the environment variable of containers whose log has an index:
	// those of nomad-kubelet's jobs.
	ownJob = "NOMAD_JOB_ID=k8s"
	// frameHead is the length of a frame's header in a stream of several outputs
	// (pkg/stdcopy), and piece how much of a frame is taken at a time, in bytes.
	frameHead = 8
	piece     = 32 << 10
	// stampMost bounds the time that the engine puts before each line, in bytes:
	// RFC 3339 with nanoseconds, and a space.
	stampMost = 40
)

// container is what the engine knows of one.
type container struct {
	State struct {
		Running   bool
		Pid       int
		StartedAt time.Time
	}
	Config struct {
		Tty bool
		Env []string
	}
	HostConfig struct{ Binds []string }
}

func (p *Proxy) inspect(ctx context.Context, id string) (*container, error) {
	c := &container{}
	return c, p.ask(ctx, "/containers/"+id+"/json", c)
}

// record begins the index of what a container writes, or goes on with it; nil for
// containers of others.
func (p *Proxy) record(ctx context.Context, id string) (r *recorder, tty bool) {
	c, err := p.inspect(ctx, id)
	if err != nil {
		p.log.Debug("a log has no index", "container", id, "error", err)
		return nil, false
	}
	place, ok := placeOf(c.HostConfig.Binds)
	own := slices.ContainsFunc(c.Config.Env, func(v string) bool { return strings.HasPrefix(v, ownJob) })
	if !ok || !own || c.State.StartedAt.IsZero() {
		return nil, false
	}
	return place.record(c.State.StartedAt.UnixNano(), p.log), c.Config.Tty
}

// started begins the index of a container that has just been started, before
// Nomad knows.
func (p *Proxy) started(ctx context.Context, id string) {
	if r, _ := p.record(ctx, id); r != nil {
		r.release()
	}
}

// followLog passes on a log that is followed and keeps its index. The engine is
// asked for the times of lines, which the driver does not get.
func (p *Proxy) followLog(w http.ResponseWriter, r *http.Request, id string) {
	defer p.logs.begin(id)()
	var rec *recorder
	var tty bool
	if readers, _, _ := p.logs.look(id); readers == 1 { // another one's bytes do not reach Nomad's files
		rec, tty = p.record(r.Context(), id)
	}
	if rec == nil {
		p.pass.ServeHTTP(w, r)
		return
	}
	defer func() { rec.close(p.over(r.Context(), id)) }()
	out := r.Clone(r.Context())
	address(out)
	out.RequestURI = ""
	if !tty {
		q := out.URL.Query()
		q.Set("timestamps", "1")
		out.URL.RawQuery = q.Encode()
	}
	resp, err := p.engine.RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	flush := http.NewResponseController(w).Flush
	if err := flush(); err != nil {
		return
	}
	t := &logTap{in: bufio.NewReaderSize(resp.Body, 2*piece), out: bufio.NewWriterSize(w, 2*piece), flush: flush, add: rec.add}
	switch {
	case resp.StatusCode != http.StatusOK:
		_, err = io.Copy(w, resp.Body)
	case tty:
		err = t.raw()
	default:
		err = t.frames()
	}
	if err != nil {
		// Cut off here, too, rather than ended well.
		panic(http.ErrAbortHandler)
	}
}

// over says whether a container whose log has ended has ended, too.
func (p *Proxy) over(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logAppears)
	defer cancel()
	c, err := p.inspect(ctx, id)
	return err != nil || !c.State.Running
}

// logTap hands on a log as fast as it is read, and what it is made of to add.
type logTap struct {
	in    *bufio.Reader
	out   *bufio.Writer
	flush func() error
	head  [frameHead]byte
	add   func(k logindex.Kind, p []byte, at time.Time)
}

// ready hands on what there is when nothing more has come yet.
func (t *logTap) ready() error {
	if t.in.Buffered() > 0 {
		return nil
	}
	if err := t.out.Flush(); err != nil {
		return err
	}
	return t.flush()
}

// take hands on n bytes.
func (t *logTap) take(n int, note func(p []byte)) error {
	for n > 0 {
		p, err := t.in.Peek(min(n, piece))
		if err != nil {
			return err
		}
		note(p)
		if _, err := t.out.Write(p); err != nil {
			return err
		}
		n -= len(p)
		_, _ = t.in.Discard(len(p)) // they have been peeked at
	}
	return nil
}

// raw hands on the output of a terminal, of which there is one and no times.
func (t *logTap) raw() error {
	for {
		if err := t.ready(); err != nil {
			return err
		}
		if _, err := t.in.Peek(1); errors.Is(err, io.EOF) {
			return nil
		}
		n := max(1, t.in.Buffered()) // an error comes by take
		if err := t.take(n, func(p []byte) { t.add(logindex.Stdout, p, time.Now()) }); err != nil {
			return err
		}
	}
}

// frames hands on the frames of several outputs without the times in them.
func (t *logTap) frames() error {
	for {
		if err := t.ready(); err != nil {
			return err
		}
		head, err := t.in.Peek(frameHead)
		if errors.Is(err, io.EOF) && len(head) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a frame of a log: %w", err)
		}
		stream, n := head[0], int(binary.BigEndian.Uint32(head[4:]))
		_, _ = t.in.Discard(frameHead) // they have been peeked at
		if err := t.frame(stream, n); err != nil {
			return err
		}
	}
}

// frame hands on one of n bytes. Streams are 1, stdout, 2, stderr, and others for
// the engine's own words, which have no time.
func (t *logTap) frame(stream byte, n int) error {
	output := stream == 1 || stream == 2
	var at time.Time
	if output {
		start, err := t.in.Peek(min(n, stampMost))
		if err != nil {
			return err
		}
		if stamp := bytes.IndexByte(start, ' '); stamp > 0 && at.UnmarshalText(start[:stamp]) == nil {
			n -= stamp + 1
			_, _ = t.in.Discard(stamp + 1) // they have been peeked at
		} else {
			at = time.Now()
		}
	}
	t.head[0] = stream
	binary.BigEndian.PutUint32(t.head[4:], uint32(n))
	if _, err := t.out.Write(t.head[:]); err != nil {
		return err
	}
	return t.take(n, func(p []byte) {
		if output {
			t.add(logindex.Kind(stream-1), p, at)
		}
	})
}
