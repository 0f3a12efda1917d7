package dockerproxy

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
)

const (
	// slot and burst bound the records: up to burst of them in a slot are one for
	// each piece of output, and tell its time exactly. What is written beyond is
	// told at the slot's end, as one piece for each stream.
	slot  = 10 * time.Millisecond
	burst = 256
	// flushAfter is how long a record may wait for others to be written with it.
	flushAfter = 20 * time.Millisecond
	// segmentBytes and keptSegments bound the index of a task.
	segmentBytes = 1 << 20
	keptSegments = 8
	// lookEvery is after how many bytes Nomad may have turned its log files. It
	// keeps several of megabytes, so none comes and goes unseen.
	lookEvery = 256 << 10
	// mostTurned bounds what is looked for at a time: containers may write into the
	// directory, too.
	mostTurned = 16
	// onTheWay is how long bytes may take from here to Nomad's files, which are
	// flushed every 100 ms.
	onTheWay = 300 * time.Millisecond
)

// recorder writes the index of one run of a container; see package logindex. The
// index is right or it is not there: what cannot be written ends it.
type recorder struct {
	place
	run int64
	log hclog.Logger

	mu     sync.Mutex
	f      *os.File // nil once it is over
	number int
	size   int64
	coder  logindex.Coder
	buf    []byte
	timer  *time.Timer // nil while nothing waits

	// pending are records that are not complete, by kind.
	pending [2]logindex.Record
	inLine  [2]bool
	// now is the latest time; inSlot records have been made since slotFrom. In
	// Unix microseconds.
	now, slotFrom int64
	inSlot        int
	// at is where the next bytes of the streams go; unseen came since Nomad's
	// files were looked at.
	at     [2]logindex.Position
	unseen int64
}

// record begins the index of a run, or goes on with it; nil when it cannot.
func (p place) record(run int64, log hclog.Logger) *recorder {
	r := &recorder{place: p, run: run, log: log, number: -1, now: run / int64(time.Microsecond)}
	segments, err := p.segments()
	again := false
	if n := len(segments); err == nil && n > 0 && segments[n-1].Run == run {
		again, err = r.reopen(segments[n-1])
	}
	if err == nil && !again {
		err = r.begin(r.ends())
	}
	if err != nil {
		r.fail(err)
		return nil
	}
	return r
}

// reopen takes up a segment that was begun before, and says whether records can
// follow. They cannot when there are some: those of another reader, of whose
// bytes not all may have arrived.
func (r *recorder) reopen(s logindex.Segment) (again bool, err error) {
	r.number = s.Number
	path := filepath.Join(r.dir, s.Name())
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	h, n, err := logindex.ParseHeader(data)
	if err != nil {
		return false, err
	}
	if n < len(data) {
		time.Sleep(onTheWay)
		return false, nil
	}
	if r.f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return false, err
	}
	r.coder, r.size, r.at = logindex.NewCoder(h), int64(n), h.Begin
	return h.Begin == r.ends(), nil
}

// begin begins the next segment there, ends the one before and drops what is too
// old.
func (r *recorder) begin(at [2]logindex.Position) error {
	h := logindex.Header{Time: r.now, Begin: at}
	r.number++
	path := filepath.Join(r.dir, logindex.Segment{Run: r.run, Number: r.number}.Name())
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	head := h.Bytes()
	if _, err := f.Write(head); err != nil {
		return errors.Join(err, f.Close())
	}
	// Only now that the next one is there, which is looked for at the mark.
	if err := r.end(logindex.Next); err != nil {
		return errors.Join(err, f.Close())
	}
	r.f, r.coder, r.size, r.at = f, logindex.NewCoder(h), int64(len(head)), at
	return r.dropOld()
}

// end writes a mark and closes the segment.
func (r *recorder) end(mark logindex.Kind) error {
	if r.f == nil {
		return nil
	}
	_, err := r.f.Write(r.coder.Append(nil, logindex.Record{Kind: mark, Time: r.now}))
	err = errors.Join(err, r.f.Close())
	r.f = nil
	return err
}

// dropOld removes the index of runs before the previous one, of which nobody
// asks, and of what Nomad has removed.
func (r *recorder) dropOld() error {
	segments, err := r.segments()
	if err != nil {
		return err
	}
	runs, kept := 0, 0
	for i := len(segments) - 1; i >= 0; i-- {
		if kept++; i == len(segments)-1 || segments[i].Run != segments[i+1].Run {
			runs++
		}
		if runs > 2 || kept > keptSegments {
			err = errors.Join(err, os.Remove(filepath.Join(r.dir, segments[i].Name())))
		}
	}
	return err
}

// add notes a piece of output.
func (r *recorder) add(k logindex.Kind, p []byte, at time.Time) {
	if len(p) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return
	}
	r.now = max(r.now, at.UnixMicro())
	switch {
	case r.now-r.slotFrom >= slot.Microseconds():
		r.complete()
		r.slotFrom, r.inSlot = r.now, 0
	case r.inSlot < burst:
		r.complete()
	}
	x := &r.pending[k]
	if x.Bytes == 0 {
		*x = logindex.Record{Kind: k, Time: r.now, Continued: r.inLine[k]}
	}
	ended := p[len(p)-1] == '\n'
	x.Bytes += int64(len(p))
	x.Lines += int64(bytes.Count(p, []byte{'\n'})) + b2i(!r.inLine[k]) - b2i(ended)
	r.inLine[k] = !ended
	r.at[k].At += int64(len(p))
	if r.unseen += int64(len(p)); r.unseen >= lookEvery {
		r.flush()
	} else if r.timer == nil {
		r.timer = time.AfterFunc(flushAfter, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.timer = nil
			r.flush()
		})
	}
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// complete makes records of what is pending, in the order of time.
func (r *recorder) complete() {
	first, second := &r.pending[0], &r.pending[1]
	if cmp.Less(second.Time, first.Time) {
		first, second = second, first
	}
	for _, x := range []*logindex.Record{first, second} {
		if x.Bytes > 0 {
			r.buf = r.coder.Append(r.buf, *x)
			r.inSlot++
			*x = logindex.Record{}
		}
	}
}

// flush writes the records, and begins a new segment when Nomad has turned a
// file or this one has become large.
func (r *recorder) flush() {
	if r.f == nil {
		return
	}
	r.complete()
	if len(r.buf) == 0 {
		return
	}
	n, err := r.f.Write(r.buf)
	r.size += int64(n)
	r.buf = r.buf[:0]
	if err == nil && r.unseen >= lookEvery {
		r.unseen = 0
		if r.turned() || r.size >= segmentBytes {
			err = r.begin(r.at)
		}
	}
	if err != nil {
		r.fail(err)
	}
}

// turned moves the positions into the files that Nomad has begun since, whose
// predecessors have their final sizes then.
func (r *recorder) turned() (turned bool) {
	for k := range r.at {
		p := &r.at[k]
		for range mostTurned {
			if !exists(r.file(logindex.Kind(k), p.File+1)) {
				break
			}
			p.At = max(0, p.At-size(r.file(logindex.Kind(k), p.File)))
			p.File++
			turned = true
		}
	}
	return turned
}

// fail gives the index up: readers do without.
func (r *recorder) fail(err error) {
	r.log.Warn("the index of a log is given up", "task", r.task, "error", err)
	r.release()
	segments, _ := r.segments()
	for _, s := range segments {
		_ = os.Remove(filepath.Join(r.dir, s.Name())) // tried
	}
}

// close writes what is left, and whether the run is over or will go on.
func (r *recorder) close(over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.flush()
	mark := logindex.Next
	if over {
		mark = logindex.Over
	}
	if r.f == nil {
		return
	}
	r.now = max(r.now, time.Now().UnixMicro())
	if err := r.end(mark); err != nil {
		r.log.Debug("the end of a log is not told", "task", r.task, "error", err)
	}
}

// release lets go of the segment as it is.
func (r *recorder) release() {
	if r.f != nil {
		_ = r.f.Close() // what was written counts
		r.f = nil
	}
}
