package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
)

// runLog writes the log of one run by its index. It is read in the order in
// which it was written, and no more of it is held than a buffer.
type runLog struct {
	*logReader
	o   logOptions
	out *lineWriter
	// retry says, when Nomad does not answer, whether to try again; nil: no.
	retry func(error) bool

	// files are those of both streams when last looked at.
	files [2][]logFile
	src   [2]source
	coder logindex.Coder
	// skip is how many lines are left out before the first one, which tail asks
	// for; begun is set for a stream when that is behind it.
	skip  int64
	begun [2]bool
}

// source is what is read of one stream.
type source struct {
	at logindex.Position
	// lost is how many of the next bytes Nomad has removed; there are so many after
	// these until the segment's end, -1 when that is not known.
	lost, there int64
	// wanted is how many bytes the records in hand are about that come. So many
	// before them are owed that had not arrived when they were waited for; while
	// the source is stuck it is not looked again.
	wanted, owed int64
	stuck        bool
	body         io.ReadCloser
}

func (s *source) close() {
	if s.body != nil {
		_ = s.body.Close() // it has been read from
		s.body = nil
	}
}

func (v *runLog) close() {
	for k := range v.src {
		v.src[k].close()
	}
}

// kinds are the streams as Nomad calls them.
var kinds = [...]string{logindex.Stdout: "stdout", logindex.Stderr: "stderr"}

// wants says whether a stream is asked for.
func (v *runLog) wants(k logindex.Kind) bool { return v.o.only == "" || v.o.only == kinds[k] }

func (v *runLog) path(k logindex.Kind, file int64) string {
	return path.Join(logDir, fmt.Sprintf("%s.%s.%d", v.task, kinds[k], file))
}

// history writes what there is of a run and returns its last segment. Two of them
// are held at a time, of a megabyte each at most.
func (v *runLog) history(ctx context.Context, r *run) (last *segment, err error) {
	if last, err = v.loadSegment(ctx, r.segments[len(r.segments)-1]); err != nil {
		return nil, err
	}
	first, err := v.first(ctx, r, last)
	if err != nil {
		return nil, err
	}
	if err := v.look(ctx); err != nil {
		return nil, err
	}
	for s := first; s != nil; {
		var next *segment
		if s != last {
			if next, err = v.after(ctx, r, s.id, last); err != nil {
				return nil, err
			}
		}
		v.begin(s, next)
		if _, _, err := v.emit(ctx, s.records); err != nil {
			return nil, err
		}
		s.records = nil
		s = next
	}
	return last, nil
}

// first finds the segment with which to begin, from the last back, and how many
// lines of it are left out.
func (v *runLog) first(ctx context.Context, r *run, last *segment) (*segment, error) {
	v.begun = [2]bool{true, true}
	lines := int64(0)
	s := last
	for i := len(r.segments) - 1; ; {
		for k := range s.lines {
			if v.wants(logindex.Kind(k)) {
				lines += s.lines[k]
			}
		}
		if v.o.tail >= 0 && lines >= v.o.tail {
			v.skip, v.begun = lines-v.o.tail, [2]bool{}
			return s, nil
		}
		if i--; i < 0 || !v.o.since.IsZero() && time.UnixMicro(s.header.Time).Before(v.o.since) {
			return s, nil
		}
		before, err := v.loadSegment(ctx, r.segments[i])
		if noFile(err) {
			return s, nil // it was dropped meanwhile
		}
		if err != nil {
			return nil, err
		}
		s = before
	}
}

// after is the segment after one, without those that were dropped meanwhile.
func (v *runLog) after(ctx context.Context, r *run, id logindex.Segment, last *segment) (*segment, error) {
	for _, next := range r.segments {
		if next.Number <= id.Number || next.Number >= last.id.Number {
			continue
		}
		if s, err := v.loadSegment(ctx, next); !noFile(err) {
			return s, err
		}
	}
	return last, nil
}

// look lists the files anew.
func (v *runLog) look(ctx context.Context) error {
	series, err := v.series(ctx)
	if err != nil {
		return err
	}
	v.files = [2][]logFile{series[0].files, series[1].files}
	return nil
}

// begin turns to a segment; next is the one after it, nil for the last.
func (v *runLog) begin(s, next *segment) {
	v.coder = logindex.NewCoder(s.header)
	for k := range v.src {
		v.src[k].close()
		src := source{at: v.normal(k, s.header.Begin[k]), there: -1}
		end, has := logindex.Position{}, len(v.files[k]) > 0
		if has {
			f := v.files[k][len(v.files[k])-1]
			end = logindex.Position{File: f.index, At: f.size}
		}
		if next != nil {
			end = v.normal(k, next.header.Begin[k])
			src.there = v.between(k, src.at, end)
		}
		if has && src.at.File < v.files[k][0].index {
			// Its first bytes are gone, and the sizes of their files: count from its end.
			there := v.between(k, src.at, end)
			src.lost = max(0, s.bytes[k]-there)
			src.at = logindex.Position{File: v.files[k][0].index, At: max(0, there-s.bytes[k])}
		}
		v.src[k] = src
	}
}

// normal is the same position in the file in which it really is, as far as that
// is known.
func (v *runLog) normal(k int, p logindex.Position) logindex.Position {
	files := v.files[k]
	for i := range files {
		if files[i].index == p.File && i+1 < len(files) && p.At >= files[i].size {
			p = logindex.Position{File: files[i+1].index, At: p.At - files[i].size}
		}
	}
	return p
}

// between is how many bytes there are from one position to another, without
// those in files that are gone.
func (v *runLog) between(k int, from, to logindex.Position) int64 {
	files := v.files[k]
	if len(files) == 0 || to.File < files[0].index {
		return 0
	}
	n := to.At
	for _, f := range files {
		if f.index >= from.File && f.index < to.File {
			n += f.size
		}
		if f.index == from.File {
			n -= from.At
		}
	}
	return max(0, n)
}

// emit writes what the records are about that are complete, and returns the
// last one and how long they are.
func (v *runLog) emit(ctx context.Context, records []byte) (last logindex.Record, size int, err error) {
	for k := range v.src {
		v.src[k].wanted, v.src[k].stuck = 0, false
	}
	until := time.Now().Add(settle)
	for count := v.coder; ; {
		r, n, err := count.Next(records[size:])
		if err != nil {
			return r, 0, err
		}
		if n == 0 {
			break
		}
		size += n
		switch {
		case !r.Kind.Mark():
			v.src[r.Kind].wanted += r.Bytes
		case r.Kind == logindex.Over && r.When().Add(settle).Before(until) && !v.o.follow:
			until = r.When().Add(settle) // what has not come by then comes no more
		}
	}
	defer v.close() // what comes after these has not been asked for
	for at, n := 0, 0; at < size; at += n {
		if last, n, err = v.coder.Next(records[at:]); err != nil {
			return last, 0, err
		}
		switch {
		case last.Kind == logindex.Over:
			err = v.rest(ctx, until)
		case !last.Kind.Mark() && v.wants(last.Kind):
			err = v.record(ctx, last, until)
		}
		if err != nil {
			return last, 0, err
		}
	}
	return last, size, nil
}

// rest writes what is owed at the end of a run.
func (v *runLog) rest(ctx context.Context, patience time.Time) error {
	for k := range v.src {
		if s := &v.src[k]; s.owed > 0 && v.o.follow {
			s.stuck = false
			if err := v.read(ctx, logindex.Kind(k), 0, v.out, patience); err != nil {
				return err
			}
		}
	}
	return nil
}

// record writes what one record is about, if it is asked for.
func (v *runLog) record(ctx context.Context, r logindex.Record, patience time.Time) error {
	var out io.Writer = v.out
	if !v.begun[r.Kind] {
		if r.Lines <= v.skip {
			v.skip -= r.Lines
			return v.read(ctx, r.Kind, r.Bytes, nil, patience)
		}
		// The rest of a line that began before has no line of its own.
		cut := &lineCutter{w: v.out, lines: v.skip}
		if r.Continued {
			cut.lines++
		}
		out = cut
		v.skip, v.begun[r.Kind] = 0, true
	}
	if r.When().Before(v.o.since) {
		out = nil
	}
	v.out.at = r.When()
	return v.read(ctx, r.Kind, r.Bytes, out, patience)
}

// lineCutter leaves out the first lines.
type lineCutter struct {
	w     io.Writer
	lines int64
}

func (c *lineCutter) Write(p []byte) (int, error) {
	n := 0
	for c.lines > 0 {
		end := bytes.IndexByte(p[n:], '\n') + 1
		if end == 0 {
			return len(p), nil
		}
		n += end
		c.lines--
	}
	m, err := c.w.Write(p[n:])
	return n + m, err
}

// read hands the next n bytes of a stream to w, or leaves them out for nil. What
// has not arrived in Nomad's files is waited for until patience ends, and then
// left for the next time.
func (v *runLog) read(ctx context.Context, k logindex.Kind, n int64, w io.Writer, patience time.Time) error {
	s := &v.src[k]
	s.wanted -= n
	gone := min(n, s.lost)
	s.lost -= gone
	n -= gone
	if s.there >= 0 {
		n = min(n, s.there)
		s.there -= n
	}
	if w == nil && s.body == nil {
		s.at.At += n
		return nil
	}
	if w == nil {
		w = io.Discard
	}
	n += s.owed
	s.owed = 0
	for n > 0 && !s.stuck {
		if s.body == nil {
			s.at = v.normal(int(k), s.at)
			var err error
			s.body, err = v.open(ctx, logFile{path: v.path(k, s.at.File)}, s.at.At, n+s.wanted)
			if err != nil && !noFile(err) && !v.again(err) {
				return err
			}
		}
		if s.body != nil {
			m, err := io.CopyN(w, s.body, n)
			s.at.At += m
			n -= m
			if v.out.failed != nil || err == nil {
				return v.out.failed
			}
			s.close()
		}
		more, err := v.await(ctx, k, patience)
		if err != nil {
			return err
		}
		s.stuck = !more
	}
	s.owed = n
	return nil
}

// again says whether an error of Nomad's is one to wait for the end of.
func (v *runLog) again(err error) bool { return v.retry != nil && v.retry(err) }

// await waits until there is more of a stream in Nomad's files and says whether.
func (v *runLog) await(ctx context.Context, k logindex.Kind, patience time.Time) (more bool, err error) {
	s := &v.src[k]
	for {
		wait := settleLook
		switch err := v.look(ctx); {
		case err != nil && !v.again(err):
			return false, err
		case err != nil:
			wait = checkEnd
		default:
			s.at = v.normal(int(k), s.at)
			files := v.files[k]
			for _, f := range files {
				if f.index == s.at.File && f.size > s.at.At {
					return true, nil
				}
			}
			if len(files) > 0 && s.at.File < files[0].index {
				// They were removed while they were read; where the others in hand are
				// is not known then.
				s.at = logindex.Position{File: files[0].index}
				return false, nil
			}
			if time.Now().After(patience) {
				return false, nil
			}
		}
		if err := pause(ctx, wait); err != nil {
			return false, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
