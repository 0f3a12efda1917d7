package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
)

// Client asks the other end of a stream for connections; it is safe for
// concurrent use.
type Client struct{ session *yamux.Session }

// NewClient takes the stream over.
func NewClient(stream io.ReadWriteCloser) (*Client, error) {
	session, err := yamux.Client(stream, config())
	if err != nil {
		return nil, err
	}
	return &Client{session}, nil
}

// Close ends all connections and the stream.
func (c *Client) Close() error { return c.session.Close() }

// Closed says whether the stream has ended.
func (c *Client) Closed() bool { return c.session.IsClosed() }

// Ping asks whether there is another end, and waits for its answer.
func (c *Client) Ping(limit time.Duration) error {
	done := make(chan error, 1)
	go func() {
		_, err := c.session.Ping()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("no answer within %s", limit)
	}
}

// Conn is a connection to a port of the pod. CloseWrite ends its writing only.
type Conn struct {
	half
	client *Client
}

// Close breaks the connection off, whatever is under way.
func (c *Conn) Close() error {
	err := errors.Join(c.Stream.SetDeadline(time.Now()), c.Stream.Close())
	s, failed := c.client.session.OpenStream()
	if failed != nil {
		return err // all of it is at its end
	}
	_, failed = fmt.Fprintf(s, "%s%d\n", abort, c.StreamID())
	return errors.Join(err, failed, s.Close())
}

// Dial connects to a port of the pod; its error is in the words of the other end.
func (c *Client) Dial(ctx context.Context, port int32) (*Conn, error) {
	s, err := c.session.OpenStream()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Now()) })()
	conn := &Conn{half{s, bufio.NewReader(s)}, c}
	if _, err := fmt.Fprintln(s, port); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	answer, err := conn.in.ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("no answer about port %d: %w", port, err), s.Close())
	}
	if answer = strings.TrimSpace(answer); answer != "" {
		_ = s.Close()
		return nil, errors.New(answer)
	}
	return conn, nil
}
