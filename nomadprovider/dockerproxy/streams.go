package dockerproxy

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// outputRead is, in the context of a request, what is called when the output of the
// command that it starts has been read.
type outputRead struct{}

// watchOutput watches for the end of a command's output. The connection that carries
// it stays open for as long as the driver's input, which the driver closes when it
// has been told of the command's end.
func watchOutput(resp *http.Response) {
	read, asked := resp.Request.Context().Value(outputRead{}).(func())
	body, upgraded := resp.Body.(io.ReadWriteCloser)
	if asked && upgraded {
		resp.Body = &watchedOutput{body, read}
	}
}

type watchedOutput struct {
	io.ReadWriteCloser
	read func()
}

func (w *watchedOutput) Read(p []byte) (int, error) {
	n, err := w.ReadWriteCloser.Read(p)
	if err != nil {
		w.read()
	}
	return n, err
}

// CloseWrite ends the input alone, as it does without the watch.
func (w *watchedOutput) CloseWrite() error {
	if c, ok := w.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return http.ErrNotSupported
}

// streams knows which outputs are being read, by key.
type streams struct {
	mu sync.Mutex
	by map[string]*stream
}

type stream struct {
	readers int
	// changed is closed, and made anew, when readers come or go.
	changed chan struct{}
}

func newStreams() *streams { return &streams{by: map[string]*stream{}} }

// begin notes a reader; the function it returns notes its end.
func (s *streams) begin(key string) (end func()) {
	s.add(key, 1)
	return func() { s.add(key, -1) }
}

func (s *streams) add(key string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.by[key]
	if st == nil {
		st = &stream{changed: make(chan struct{})}
		s.by[key] = st
	}
	st.readers += n
	close(st.changed)
	st.changed = make(chan struct{})
}

// look tells how many read, and whether anybody ever has.
func (s *streams) look(key string) (readers int, known bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.by[key]
	if st == nil {
		return 0, false, nil
	}
	return st.readers, true, st.changed
}

// forget drops an output that nobody will read any more.
func (s *streams) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.by[key]; st != nil && st.readers == 0 {
		delete(s.by, key)
	}
}

// drained waits until nobody reads the output any more and says whether there
// was somebody; it gives up with ctx.
func (s *streams) drained(ctx context.Context, key string) (read bool) {
	for {
		readers, known, changed := s.look(key)
		if readers == 0 {
			return known
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return true
		}
	}
}
