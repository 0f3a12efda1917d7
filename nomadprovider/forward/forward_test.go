package forward

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// ends joins a server and a client by a pipe.
func ends(t *testing.T, dial func(context.Context, int) (net.Conn, error)) *Client {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), far, dial) }()
	c, err := NewClient(near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return c
}

// listen runs handle for each connection to a port of this machine.
func listen(t *testing.T, handle func(*net.TCPConn)) (port int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go handle(conn.(*net.TCPConn))
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// Many connections at once carry their bytes, and answers to what has ended come.
func TestConnections(t *testing.T) {
	// Answers when the request has ended.
	port := listen(t, func(c *net.TCPConn) {
		defer c.Close()
		data, _ := io.ReadAll(c)
		_, _ = c.Write(data)
	})
	client := ends(t, Local)
	done := make(chan error)
	const n = 20
	for i := range n {
		go func() {
			conn, err := client.Dial(t.Context(), port)
			if err != nil {
				done <- err
				return
			}
			data := make([]byte, 100_000*(i+1))
			_, _ = rand.Read(data)
			go func() {
				_, _ = conn.Write(data)
				_ = conn.CloseWrite()
			}()
			back, err := io.ReadAll(conn)
			if err == nil && !bytes.Equal(back, data) {
				err = fmt.Errorf("connection %d: %d bytes came back of %d", i, len(back), len(data))
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRefused(t *testing.T) {
	client := ends(t, Local)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if _, err := client.Dial(t.Context(), port); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if _, err := client.Dial(t.Context(), 70000); err == nil || !strings.Contains(err.Error(), "no port") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	silent := ends(t, func(ctx context.Context, _ int) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() })
	if _, err := silent.Dial(ctx, 1); err == nil {
		t.Error("connected to nothing")
	}
}

// A reader that leaves ends the connection at its other end, while others go on.
func TestClose(t *testing.T) {
	gone := make(chan struct{})
	endless := listen(t, func(c *net.TCPConn) {
		defer close(gone)
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	other := listen(t, func(c *net.TCPConn) { defer c.Close(); _, _ = io.Copy(c, c) })
	client := ends(t, Local)
	conn, err := client.Dial(t.Context(), endless)
	if err != nil {
		t.Fatal(err)
	}
	beside, err := client.Dial(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 10<<20)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("it writes on")
	}
	_, _ = io.WriteString(beside, "hello")
	buf := make([]byte, 5)
	if _, err := io.ReadFull(beside, buf); err != nil || string(buf) != "hello" {
		t.Errorf("beside: %q %v", buf, err)
	}
	_ = beside.Close()
}
