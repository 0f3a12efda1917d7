package kubelet

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"time"
)

// errLimit ends a log at limitBytes.
var errLimit = errors.New("limitBytes reached")

// lineBuffer is how much of a log is collected before it is sent, in bytes.
const lineBuffer = 16 << 10

// lineWriter writes a log to the client: with timestamps if asked for, and not
// beyond the limit of bytes. What has been written is sent by flush. It is not
// safe for concurrent use.
type lineWriter struct {
	w          *bufio.Writer
	flusher    http.Flusher
	timestamps bool
	left       int64 // -1: no limit
	// at is the time to put before lines; zero is the time of their arrival.
	at time.Time
	// inLine is set after a part of a line.
	inLine bool
	// failed is why no more can be written.
	failed error
}

func newLineWriter(w http.ResponseWriter, o logOptions) *lineWriter {
	f, _ := w.(http.Flusher)
	return &lineWriter{w: bufio.NewWriterSize(w, lineBuffer), flusher: f, timestamps: o.timestamps, left: o.limit}
}

func (l *lineWriter) Write(p []byte) (int, error) {
	if !l.timestamps {
		return l.put(p)
	}
	written := 0
	for len(p) > 0 {
		if !l.inLine {
			at := l.at
			if at.IsZero() {
				at = time.Now()
			}
			// The kubelet's format (types.RFC3339NanoFixed).
			stamp := at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00")
			if _, err := l.put([]byte(stamp + " ")); err != nil {
				return written, err
			}
		}
		end := bytes.IndexByte(p, '\n') + 1
		if end == 0 {
			end = len(p)
		}
		n, err := l.put(p[:end])
		written += n
		if err != nil {
			return written, err
		}
		p = p[end:]
	}
	return written, nil
}

func (l *lineWriter) put(p []byte) (int, error) {
	if l.failed != nil || len(p) == 0 {
		return 0, l.failed
	}
	short := l.left >= 0 && int64(len(p)) >= l.left
	if short {
		p = p[:l.left]
	}
	n, err := l.w.Write(p)
	if n > 0 {
		l.inLine = p[n-1] != '\n'
	}
	if l.left >= 0 {
		l.left -= int64(n)
	}
	if err == nil && short {
		err = errLimit
	}
	l.failed = err
	return n, err
}

// newLine ends a last line that has no end, so that the next stream's first
// line does not go on with it.
func (l *lineWriter) newLine() error {
	if !l.inLine {
		return nil
	}
	_, err := l.put([]byte("\n"))
	return err
}

// flush sends what has been written, so that kubectl logs -f shows a line when
// it comes.
func (l *lineWriter) flush() error {
	if err := l.w.Flush(); err != nil {
		l.failed = err
		return err
	}
	if l.flusher != nil {
		l.flusher.Flush()
	}
	return nil
}
