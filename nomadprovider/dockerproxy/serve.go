package dockerproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Serve listens on the Unix socket listen, for root alone, and passes requests
// to the engine on the Unix socket engine, until ctx ends.
func Serve(ctx context.Context, listen, engine string, log hclog.Logger) error {
	l, err := socket(listen)
	if err != nil {
		return err
	}
	return serve(ctx, l, engine, log)
}

// socket listens on a Unix socket in place of one that a former self left behind.
func socket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close() // nobody is to find it open
		return nil, err
	}
	return l, nil
}

func serve(ctx context.Context, l net.Listener, engine string, log hclog.Logger) error {
	s := &http.Server{Handler: New(engine, log), ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // streams last for ever: nothing to wait for
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
