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
	// A socket that a former self left behind.
	if err := os.Remove(listen); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket %s: %w", listen, err)
	}
	l, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	if err := os.Chmod(listen, 0o600); err != nil {
		return err
	}
	s := &http.Server{Handler: New(engine, log), ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // streams last for ever: nothing to wait for
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", listen, err)
	}
	return nil
}
