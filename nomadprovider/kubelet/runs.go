package kubelet

import (
	"context"
	"fmt"
	"io"
	"path"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// segmentLimit bounds what is read of one segment of an index, in bytes. The
// docker proxy begins another one much earlier.
const segmentLimit = 8 << 20

// run is one run of a container as the index of its log has it.
type run struct {
	// start is in Unix nanoseconds.
	start    int64
	segments []logindex.Segment
}

// runs lists the runs of which there is an index, oldest first: none where the
// client has no docker proxy.
func (l *logReader) runs(ctx context.Context) ([]run, error) {
	entries, err := l.list(ctx, l.task)
	if noFile(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	var out []run
	for _, s := range logindex.Segments(names) {
		if n := len(out); n == 0 || out[n-1].start != s.Run {
			out = append(out, run{start: s.Run})
		}
		last := &out[len(out)-1]
		last.segments = append(last.segments, s)
	}
	return out, nil
}

// pick chooses the run that is asked for, nil when it is not there, and says
// whether it has not ended: the current one or the previous, by the kubelet's rules
// (pkg/kubelet/kubelet_pods.go, validateContainerLogStatus). After an end and
// before the next start both are the one that ended.
//
// Nomad's times, which are of the client's clock, say which run ended, to the
// nanosecond; the pod's status knows seconds only.
func (t *target) pick(runs []run, previous bool) (r *run, lives bool) {
	ended, lives := -1, true
	if ts := t.tasks[translate.TaskName(t.container)]; ts != nil {
		if end := translate.LastEnd(ts); end != nil {
			for i := range runs {
				if runs[i].start <= end.Time {
					ended = i
				}
			}
			lives = ts.StartedAt.UnixNano() > end.Time
		}
	}
	i := ended
	switch {
	case !previous && lives:
		if i = len(runs) - 1; i == ended {
			return nil, true // not yet
		}
		return &runs[i], true
	case previous && !lives && (t.status == nil || t.status.State.Waiting == nil):
		i = ended - 1
	}
	if i < 0 {
		return nil, false
	}
	return &runs[i], false
}

// segment is one of a run's, as far as it has been read.
type segment struct {
	id     logindex.Segment
	header logindex.Header
	// records have been read, up to this offset in the file; 0 stands for not even
	// the header.
	records []byte
	read    int64
	// lines and bytes are those of each stream.
	lines, bytes [2]int64
	last         logindex.Kind
}

// loadSegment reads a segment as it is now.
func (l *logReader) loadSegment(ctx context.Context, id logindex.Segment) (*segment, error) {
	name := path.Join(l.task, id.Name())
	r, err := l.open(ctx, logFile{path: name}, 0, segmentLimit)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	s := &segment{id: id}
	h, n, err := logindex.ParseHeader(data)
	if err != nil || n == 0 {
		return s, err
	}
	s.header, s.read = h, int64(n)
	all := data[n:]
	for c, at := logindex.NewCoder(h), 0; ; {
		x, n, err := c.Next(all[at:])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			s.records = all[:at]
			s.read += int64(at)
			return s, nil
		}
		at += n
		if s.last = x.Kind; !x.Kind.Mark() {
			s.lines[x.Kind] += x.Lines
			s.bytes[x.Kind] += x.Bytes
		}
	}
}
