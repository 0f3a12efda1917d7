package kubelet

import (
	"context"
	"io"
	"sync"
)

// gatherMost bounds what of an output waits to be sent, in bytes.
const gatherMost = 64 << 10

// gatherer hands on an output in larger pieces than it comes in. Nomad gives it in
// pieces of 1 KiB (plugins/drivers/execstreaming.go), and each piece that is sent
// costs this process, the API server and the client a frame and some calls. What
// has come while one is being sent is the next one: nothing waits for company.
type gatherer struct {
	w io.Writer

	mu      sync.Mutex
	changed sync.Cond
	buf     []byte // to be sent
	ended   bool
	failed  error
	done    chan struct{}
}

// gather begins to hand on to w, until the end is asked for.
func gather(w io.Writer) *gatherer {
	g := &gatherer{w: w, done: make(chan struct{})}
	g.changed.L = &g.mu
	go g.run()
	return g
}

// Write takes output, and waits while too much is to be sent. Its error is that of
// an earlier piece.
func (g *gatherer) Write(p []byte) (n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(p) > 0 {
		for len(g.buf) >= gatherMost && g.failed == nil && !g.ended {
			g.changed.Wait()
		}
		switch {
		case g.failed != nil:
			return n, g.failed
		case g.ended:
			return n, io.ErrClosedPipe
		}
		m := min(len(p), gatherMost-len(g.buf))
		g.buf = append(g.buf, p[:m]...)
		p, n = p[m:], n+m
		g.changed.Broadcast()
	}
	return n, nil
}

// end returns when all has been sent, or an error or the end of ctx has kept it
// from that.
func (g *gatherer) end(ctx context.Context) {
	g.mu.Lock()
	g.ended = true
	g.changed.Broadcast()
	g.mu.Unlock()
	select {
	case <-g.done:
	case <-ctx.Done():
	}
}

func (g *gatherer) run() {
	defer close(g.done)
	var sent []byte
	for {
		g.mu.Lock()
		for len(g.buf) == 0 && !g.ended {
			g.changed.Wait()
		}
		if len(g.buf) == 0 || g.failed != nil {
			g.mu.Unlock()
			return
		}
		sent, g.buf = g.buf, sent[:0]
		g.changed.Broadcast()
		g.mu.Unlock()
		if _, err := g.w.Write(sent); err != nil {
			g.mu.Lock()
			g.failed = err
			g.changed.Broadcast()
			g.mu.Unlock()
			return
		}
	}
}
