package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
)

// sendRun writes the log of a run, nil for one that is only about to begin, and
// follows it if that is asked for and it has not ended.
func (s *Server) sendRun(ctx context.Context, l *logReader, t *target, r *run, lives bool, o logOptions, out *lineWriter) error {
	for r == nil {
		if !o.follow || !lives || s.ended(t) {
			return nil
		}
		if err := pause(ctx, checkEnd); err != nil {
			return err
		}
		runs, err := l.runs(ctx)
		if err != nil {
			return err
		}
		r, _ = t.pick(runs, false)
	}
	v := &runLog{logReader: l, o: o, out: out}
	defer v.close()
	last, err := v.history(ctx, r)
	if err != nil {
		return err
	}
	if err := out.flush(); err != nil || !o.follow || !lives || last.last == logindex.Over {
		return err
	}
	f := &runFollower{runLog: v, id: last.id, offset: last.read, ended: func() bool { return s.ended(t) }, heard: time.Now()}
	v.retry = f.patient
	return f.follow(ctx)
}

// runFollower follows the index of a run: what it tells is read as it is told.
// There is one connection for it, and no goroutine; a client that does not read
// keeps all of it waiting.
type runFollower struct {
	*runLog
	id logindex.Segment
	// offset is how much of the segment has been read, of which rest is not
	// complete.
	offset int64
	rest   []byte
	// ended says whether the container is known to be gone for good, over since
	// when; data is when something came last.
	ended      func() bool
	over, data time.Time
	// heard is when Nomad answered last, if only by a heartbeat.
	heard time.Time
	// broken is why it cannot go on.
	broken error
}

// alive says whether there may come more.
func (f *runFollower) alive() bool {
	if f.over.IsZero() && f.ended() {
		f.over = time.Now()
	}
	return f.over.IsZero() || time.Since(f.over) < quiet || time.Since(f.data) < quiet
}

// patient says whether to try again after an error.
func (f *runFollower) patient(err error) bool { return passes(err, f.heard) && f.alive() }

// follow returns when the run is over, or nothing more is to be expected.
func (f *runFollower) follow(ctx context.Context) error {
	for {
		mark, err := f.followSegment(ctx)
		wait := checkEnd
		switch {
		case ctx.Err() != nil || mark == logindex.Over || f.broken != nil:
			return f.broken
		case mark == logindex.Next:
			f.turn(logindex.Segment{Run: f.id.Run, Number: f.id.Number + 1})
			continue
		case noFile(err):
			wait = 2 * settleLook
			if gone, err := f.find(ctx); gone || err != nil && !f.patient(err) {
				return err
			}
		case err != nil && !f.patient(err):
			return err
		}
		if !f.alive() {
			return nil
		}
		if pause(ctx, wait) != nil {
			return nil
		}
	}
}

func (f *runFollower) turn(to logindex.Segment) { f.id, f.offset, f.rest = to, 0, nil }

// find looks for the segment that comes next when the one in hand is not there:
// it has not been begun, or a client that did not read has missed it. It is gone
// when the run is.
func (f *runFollower) find(ctx context.Context) (gone bool, err error) {
	runs, err := f.runs(ctx)
	if err != nil {
		return false, err
	}
	for _, r := range runs {
		if r.start != f.id.Run {
			continue
		}
		for _, s := range r.segments {
			if s.Number > f.id.Number {
				f.turn(s)
				break
			}
		}
		return false, nil
	}
	return true, nil
}

// followSegment follows one segment to the mark at its end, or an error.
func (f *runFollower) followSegment(ctx context.Context) (mark logindex.Kind, err error) {
	stream, cancel := context.WithCancel(ctx)
	defer cancel()
	name := path.Join(f.task, f.id.Name())
	body, err := f.nomad.Raw().Response("/v1/client/fs/stream/"+url.PathEscape(f.allocID), f.query(stream, map[string]string{
		"path": name, "offset": strconv.FormatInt(f.offset, 10), "origin": "start", "follow": "true",
	}))
	if err != nil {
		return 0, fmt.Errorf("follow %s: %w", name, err)
	}
	defer body.Close()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	dec := json.NewDecoder(body)
	for {
		var frame api.StreamFrame
		if err := dec.Decode(&frame); err != nil {
			return 0, fmt.Errorf("follow %s: %w", name, err)
		}
		watchdog.Reset(silence)
		f.heard = time.Now()
		if len(frame.Data) == 0 {
			if !f.alive() {
				return 0, nil
			}
			continue
		}
		f.data = time.Now()
		f.rest = append(f.rest, frame.Data...)
		f.offset += int64(len(frame.Data))
		if mark, err = f.take(ctx); err != nil || mark.Mark() {
			return mark, err
		}
	}
}

// take writes what has been told.
func (f *runFollower) take(ctx context.Context) (mark logindex.Kind, err error) {
	if int64(len(f.rest)) == f.offset {
		// From the beginning.
		h, n, err := logindex.ParseHeader(f.rest)
		if err != nil || n == 0 {
			f.broken = err
			return 0, err
		}
		if err := f.look(ctx); err != nil {
			return 0, err
		}
		f.begin(&segment{id: f.id, header: h}, nil)
		f.rest = f.rest[n:]
	}
	last, n, err := f.emit(ctx, f.rest)
	if err == nil {
		err = f.out.flush()
	}
	if err != nil {
		f.broken = err
		return 0, err
	}
	f.rest = bytes.Clone(f.rest[n:])
	return last.Kind, nil
}
