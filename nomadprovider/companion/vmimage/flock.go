package vmimage

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// flock waits for the lock, as [unix.Flock] with how, unless how says not to.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// locked opens a file, made if it is not there, and takes its lock for one alone;
// closing it gives the lock back.
func locked(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	taken := make(chan error, 1)
	go func() { taken <- flock(f, unix.LOCK_EX) }()
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

// unused takes the lock of a file that nobody uses, for one alone: neither by
// flock nor, as qemu locks the images that it has open (block/file-posix.c), by an
// open file description lock. It returns nil for one that is in use.
func unused(path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	other := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil &&
		unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &other) == nil && other.Type == unix.F_UNLCK {
		return f
	}
	f.Close()
	return nil
}

// Hold takes a share in an image, so that it is not evicted until the file is
// closed. It waits for nobody but one who is just about to remove it.
func Hold(path string) (*os.File, error) {
	for {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_SH); err != nil {
			f.Close()
			return nil, err
		}
		held, err := f.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(held, there) {
				return f, nil
			}
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}
