package dockerproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// patience is how long an attached client's connection may take nothing. The
// engine holds a container up whose output nobody takes, so one that is gone, when
// nobody is left to say so, is not waited for.
const patience = 30 * time.Second

// patient is a connection that fails a write after patience.
type patient struct{ net.Conn }

func (p patient) Write(b []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.Conn.Write(b)
}

// attach joins the call to the container's own streams, which the engine carries
// in the same form as a command's, until they end or the caller leaves.
func (p *Proxy) attach(ctx context.Context, c *call, s *callStream) error {
	engine, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer engine.Close()
	// By CallEnd.
	defer context.AfterFunc(ctx, func() { _, _ = engine.Close(), s.conn.Close() })()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/containers/"+c.container+"/attach?stream=1&stdin=1&stdout=1&stderr=1", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if err := req.Write(engine); err != nil {
		return err
	}
	from := bufio.NewReader(engine)
	resp, err := http.ReadResponse(from, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("attach: %s: %s", resp.Status, text)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, err := io.Copy(engine, s)
		if w, ok := engine.(*net.UnixConn); ok && err == nil {
			_ = w.CloseWrite() // the end of the input, not of the call
		} else {
			_ = engine.Close()
		}
	})
	_, err = io.Copy(patient{s.conn}, from)
	_ = s.conn.Close() // the output has ended, and with it the call
	return err
}
