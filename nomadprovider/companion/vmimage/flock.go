package vmimage

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/filelock"
)

// unused takes the lock of a file that nobody uses, for one alone: neither by
// flock nor, as qemu locks the images that it has open (block/file-posix.c), by an
// open file description lock. It returns nil for one that is in use.
func unused(path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	other := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if filelock.Flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil &&
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
		if err := filelock.Flock(f, unix.LOCK_SH); err != nil {
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
