package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	// logDir is where Nomad keeps logs within an allocation.
	logDir = "alloc/logs"
	// tailChunk is how much is read at once when looking for lines from the
	// end.
	tailChunk = 64 << 10
)

// logFile is one file of a stream: <task>.<stream>.<index>.
type logFile struct {
	index int64
	path  string
	size  int64
	mod   time.Time
}

// stream is stdout or stderr of a task as far as it is written: files in order.
type stream struct {
	kind  string // stdout or stderr
	files []logFile
}

// size in bytes of what Nomad still has.
func (s *stream) size() (n int64) {
	for _, f := range s.files {
		n += f.size
	}
	return n
}

// lastWrite is zero for a stream without files.
func (s *stream) lastWrite() (t time.Time) {
	for _, f := range s.files {
		if f.mod.After(t) {
			t = f.mod
		}
	}
	return t
}

// logReader reads the log files of a task by Nomad's file API, which gives
// exact positions; the log API itself knows only distances from a moving end.
type logReader struct {
	nomad     *api.Client
	namespace string
	allocID   string
	task      string
}

// query makes the options of a call. They are not shared: the client library
// writes into them.
func (l *logReader) query(ctx context.Context, params map[string]string) *api.QueryOptions {
	return (&api.QueryOptions{Namespace: l.namespace, Params: params}).WithContext(ctx)
}

// list lists a directory of the allocation.
func (l *logReader) list(ctx context.Context, dir string) ([]*api.AllocFileInfo, error) {
	var entries []*api.AllocFileInfo
	_, err := l.nomad.Raw().Query("/v1/client/fs/ls/"+url.PathEscape(l.allocID), &entries, l.query(ctx, map[string]string{"path": dir}))
	if err != nil {
		return nil, fmt.Errorf("list %s of allocation %s: %w", dir, l.allocID, err)
	}
	return entries, nil
}

// noFile says whether Nomad answered that a file is not there, which it tells by
// words only (client/fs_endpoint.go).
func noFile(err error) bool {
	var u api.UnexpectedResponseError
	return errors.As(err, &u) && strings.Contains(u.Body(), "no such file")
}

// series lists the files of stdout and of stderr, by logindex's kinds.
func (l *logReader) series(ctx context.Context) ([]*stream, error) {
	entries, err := l.list(ctx, logDir)
	if err != nil {
		return nil, err
	}
	out := []*stream{{kind: "stdout"}, {kind: "stderr"}}
	for _, e := range entries {
		for _, s := range out {
			rest, ok := strings.CutPrefix(e.Name, l.task+"."+s.kind+".")
			if !ok || e.IsDir {
				continue
			}
			if i, err := strconv.ParseInt(rest, 10, 64); err == nil {
				s.files = append(s.files, logFile{index: i, path: path.Join(logDir, e.Name), size: e.Size, mod: e.ModTime})
			}
		}
	}
	for _, s := range out {
		sort.Slice(s.files, func(i, j int) bool { return s.files[i].index < s.files[j].index })
	}
	return out, nil
}

// streams lists the files of both streams, the stream written to last coming
// last.
func (l *logReader) streams(ctx context.Context) ([]*stream, error) {
	out, err := l.series(ctx)
	if err != nil {
		return nil, err
	}
	if out[0].lastWrite().After(out[1].lastWrite()) {
		out[0], out[1] = out[1], out[0]
	}
	return out, nil
}

const (
	// settle is how long after a container's end its log may still grow: Nomad
	// tells the end before its log collector, logmon, has written what is in its
	// pipes, to which it gives two seconds itself (client/logmon/logmon.go).
	settle = 2500 * time.Millisecond
	// settleLook is the pause between two looks at it.
	settleLook = 100 * time.Millisecond
)

// settled lists the streams of a container that ended at that time, zero for one
// that has not, once they no longer grow: two looks at something find the same,
// and nothing is waited for until it can come no more.
func (l *logReader) settled(ctx context.Context, end time.Time) ([]*stream, error) {
	for before := int64(0); ; {
		streams, err := l.streams(ctx)
		if err != nil || end.IsZero() || time.Since(end) > settle {
			return streams, err
		}
		size := streams[0].size() + streams[1].size()
		if size > 0 && size == before {
			return streams, nil
		}
		before = size
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settleLook):
		}
	}
}

// open reads a part of a file.
func (l *logReader) open(ctx context.Context, f logFile, offset, limit int64) (io.ReadCloser, error) {
	r, err := l.nomad.Raw().Response("/v1/client/fs/readat/"+url.PathEscape(l.allocID), l.query(ctx, map[string]string{
		"path":   f.path,
		"offset": strconv.FormatInt(offset, 10),
		"limit":  strconv.FormatInt(limit, 10),
	}))
	if err != nil {
		return nil, fmt.Errorf("read %s of allocation %s: %w", f.path, l.allocID, err)
	}
	return r, nil
}

// tailStart finds where the last n lines of a stream begin, as an offset into
// it, and how many lines there are from there, n at most. It reads backwards,
// one chunk at a time. A last line without an end counts as one.
func (l *logReader) tailStart(ctx context.Context, s *stream, n int64) (offset, lines int64, err error) {
	if n <= 0 || s.size() == 0 {
		return s.size(), 0, nil
	}
	at := s.size()
	buf := make([]byte, tailChunk)
	last := true // the very last byte ends a line that is counted already
	for i := len(s.files) - 1; i >= 0; i-- {
		f := s.files[i]
		for end := f.size; end > 0; {
			start := max(0, end-tailChunk)
			chunk := buf[:end-start]
			if err := l.readFull(ctx, f, start, chunk); err != nil {
				return 0, 0, err
			}
			if last {
				lines, last = 1, false
				if chunk[len(chunk)-1] == '\n' {
					chunk = chunk[:len(chunk)-1]
					at--
				}
			}
			for {
				nl := bytes.LastIndexByte(chunk, '\n')
				if nl < 0 {
					at -= int64(len(chunk))
					break
				}
				at -= int64(len(chunk) - nl - 1)
				if lines == n {
					return at, lines, nil
				}
				lines++
				at--
				chunk = chunk[:nl]
			}
			end = start
		}
	}
	return 0, lines, nil
}

func (l *logReader) readFull(ctx context.Context, f logFile, offset int64, into []byte) error {
	r, err := l.open(ctx, f, offset, int64(len(into)))
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, into); err != nil {
		return fmt.Errorf("read %s of allocation %s: %w", f.path, l.allocID, err)
	}
	return nil
}

// copy hands a stream's content from an offset on to w, up to the size that it
// had when it was listed. Files that were rotated away meanwhile are skipped.
func (l *logReader) copy(ctx context.Context, s *stream, offset int64, w io.Writer) error {
	for _, f := range s.files {
		if offset >= f.size {
			offset -= f.size
			continue
		}
		if err := l.copyFile(ctx, f, offset, w); err != nil && !noFile(err) {
			return err
		}
		offset = 0
	}
	return nil
}

func (l *logReader) copyFile(ctx context.Context, f logFile, offset int64, w io.Writer) error {
	r, err := l.open(ctx, f, offset, f.size-offset)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}
