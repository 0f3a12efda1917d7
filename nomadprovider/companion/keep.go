package companion

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// keepDisk makes a disk that outlives its VM's pod, empty and without a format: a
// file that takes no room before it is written to. One that is there stays as it is.
//
// qemu, root on the client, opens it by its name. The volume may have been a
// container's before, which may have put anything under that name, so what is no
// plain file of this volume alone is refused.
func keepDisk(e Entry) error {
	info, err := os.Lstat(e.Disk)
	switch {
	case err == nil:
		return plain(e.Disk, info)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case e.ReadOnly:
		return fmt.Errorf("the volume has no %s, and is only to be read", filepath.Base(e.Disk))
	}
	f, err := os.CreateTemp(filepath.Dir(e.Disk), tempStyle)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(f.Truncate(e.SizeMB*mebibyte), f.Sync(), f.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link replaces nothing.
	if err := os.Link(f.Name(), e.Disk); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func plain(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s in the volume is no file but %s", filepath.Base(path), info.Mode().Type())
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink != 1 {
		return fmt.Errorf("%s in the volume has %d names, so it may be somebody else's file", filepath.Base(path), stat.Nlink)
	}
	return nil
}
