package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	// checkEnd is how often a followed container is looked up (in memory).
	checkEnd = time.Second
	// quiet is how long nothing may arrive after the container's end before
	// its log counts as complete: Nomad looks at the files every 250 ms, and
	// its log collector writes what is in its pipe.
	quiet = 1500 * time.Millisecond
	// silence is how long a log stream may be without even a heartbeat, which
	// Nomad sends every second (client/fs_endpoint.go).
	silence = 30 * time.Second
)

// follow copies what is written to both streams from the ends that were
// listed, as it arrives, until ended says that the container is gone for good
// and no more comes, or ctx ends.
func (l *logReader) follow(ctx context.Context, streams []*stream, ended func() bool, w io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu   sync.Mutex // one line-writer for both streams
		last = time.Now()
		wg   sync.WaitGroup
	)
	for _, s := range streams {
		wg.Go(func() {
			err := l.followStream(ctx, s, func(p []byte) error {
				mu.Lock()
				defer mu.Unlock()
				last = time.Now()
				if _, err := w.Write(p); err != nil {
					return err
				}
				if b, ok := w.(*lineWriter); ok {
					return b.flush()
				}
				return nil
			})
			if err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	wg.Go(func() {
		t := time.NewTicker(checkEnd / 2)
		defer t.Stop()
		var over time.Time
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if over.IsZero() && ended() {
				over = time.Now()
			}
			mu.Lock()
			since := time.Since(last)
			mu.Unlock()
			if !over.IsZero() && time.Since(over) >= quiet && since >= quiet {
				cancel(nil)
				return
			}
		}
	})
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// followStream follows one stream from the size that was listed; a stream that
// has no file yet is waited for.
func (l *logReader) followStream(ctx context.Context, s *stream, emit func([]byte) error) error {
	offset, heard := s.size(), time.Now()
	for ctx.Err() == nil {
		n, err := l.followOnce(ctx, s.kind, offset, emit)
		offset += n
		if errors.Is(err, errClient) || !passes(err, heard) {
			return err
		}
		var u api.UnexpectedResponseError
		if !errors.As(err, &u) {
			heard = time.Now()
		}
		// The connection was cut, or the task is only about to start.
		select {
		case <-ctx.Done():
		case <-time.After(checkEnd):
		}
	}
	return nil
}

// passes says whether an error of Nomad's may pass, which answered last at that
// time. An agent that restarts does not know its allocations for a moment, and
// with access control not even its tokens.
func passes(err error, heard time.Time) bool {
	var u api.UnexpectedResponseError
	if !errors.As(err, &u) || u.StatusCode() == http.StatusNotFound || u.StatusCode() >= http.StatusInternalServerError {
		return true
	}
	return u.StatusCode() == http.StatusForbidden && time.Since(heard) < silence
}

// errClient marks that the reader of the log is gone.
var errClient = errors.New("the client has left")

// followOnce reads one follow request to its end and returns how many bytes of
// log it gave. Nomad counts the offset over the files that it still has.
func (l *logReader) followOnce(ctx context.Context, kind string, offset int64, emit func([]byte) error) (n int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := l.nomad.Raw().Response("/v1/client/fs/logs/"+url.PathEscape(l.allocID), l.query(ctx, map[string]string{
		"task": l.task, "type": kind, "follow": "true",
		"origin": "start", "offset": strconv.FormatInt(offset, 10),
	}))
	if err != nil {
		return 0, fmt.Errorf("follow %s of task %q: %w", kind, l.task, err)
	}
	defer body.Close()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	dec := json.NewDecoder(body)
	for {
		var frame api.StreamFrame
		if err := dec.Decode(&frame); err != nil {
			return n, fmt.Errorf("follow %s of task %q: %w", kind, l.task, err)
		}
		watchdog.Reset(silence)
		if len(frame.Data) == 0 {
			continue
		}
		n += int64(len(frame.Data))
		if err := emit(frame.Data); err != nil {
			return n, errors.Join(errClient, err)
		}
	}
}
