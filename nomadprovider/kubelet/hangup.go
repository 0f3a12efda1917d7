package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
)

// hangupWriter cancels a context when the connection of an upgraded request
// ends. net/http does so for plain requests only: after Hijack it no longer
// reads, and a client that has left would leave its command running.
type hangupWriter struct {
	http.ResponseWriter
	cancel context.CancelFunc
}

var _ http.Hijacker = (*hangupWriter)(nil)

func (h *hangupWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hj, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be upgraded")
	}
	conn, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, err
	}
	c := &hangupConn{Conn: conn, cancel: h.cancel}
	// What the server has read ahead comes first.
	ahead, _ := rw.Reader.Peek(rw.Reader.Buffered())
	r := io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), c)
	return c, bufio.NewReadWriter(bufio.NewReader(r), bufio.NewWriter(c)), nil
}

func (h *hangupWriter) Flush() {
	if f, ok := h.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

type hangupConn struct {
	net.Conn
	cancel context.CancelFunc
}

func (c *hangupConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.cancel()
	}
	return n, err
}

func (c *hangupConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.cancel()
	}
	return n, err
}

func (c *hangupConn) Close() error {
	c.cancel()
	return c.Conn.Close()
}
