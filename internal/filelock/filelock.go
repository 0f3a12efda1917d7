package filelock

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Flock waits for a file's lock, as [unix.Flock] with how, unless how says not to.
func Flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Exclusive opens a file, made if it is not there, and takes its lock for one alone,
// in the order of asking, or gives up when ctx ends. The lock is given back when the
// file is closed or the process ends.
func Exclusive(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	taken := make(chan error, 1)
	go func() { taken <- Flock(f, unix.LOCK_EX) }()
	select {
	case err = <-taken:
	case <-ctx.Done():
		go func() {
			<-taken // the kernel's queue is not left; its turn is given back
			f.Close()
		}()
		return nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
