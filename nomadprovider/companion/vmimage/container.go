package vmimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A container image that carries a disk is laid out as KubeVirt's containerDisk: one
// file below /disk. Nothing else need be in it, so what copies the disk out is this
// program, run as that image's container.

// diskDir is where the disk lies in such an image.
const diskDir = "disk"

// Find returns the path of the disk in the container image whose files are below
// root, "/" for the container that we are in: the file that is given, relative to
// root, or else the only one below /disk. It refuses what is no file of the image,
// such as a link to, or a path in, what is mounted there.
func Find(root, given string) (string, error) {
	file := given
	if file == "" {
		entries, err := os.ReadDir(filepath.Join(root, diskDir))
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && len(entries) == 0:
			return "", errors.New("the container image has no file below /disk: name its disk in annotation nomad-kubelet.io/vm-image-path")
		case err != nil:
			return "", err
		case len(entries) > 1:
			return "", fmt.Errorf("the container image has %d files below /disk: name one in annotation nomad-kubelet.io/vm-image-path", len(entries))
		}
		file = diskDir + "/" + entries[0].Name()
	}
	path := filepath.Join(root, filepath.Clean("/"+file))
	shown := "/" + strings.TrimPrefix(filepath.Clean("/"+file), "/")
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the container image has no file %s: correct annotation nomad-kubelet.io/vm-image-path", shown)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return "", err
	case real != path || !info.Mode().IsRegular() || mounted(root, path):
		return "", fmt.Errorf("%s is no regular file of the container image: name its disk in annotation nomad-kubelet.io/vm-image-path", shown)
	}
	return path, nil
}

// mounted says whether a path lies on another mount than root.
func mounted(root, path string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return true // it is not known, so it is refused
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := unescape.Replace(f[4])
		if at != root && under(at, root) && (path == at || under(path, at)) {
			return true
		}
	}
	return false
}

func under(path, dir string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Copy returns the copy of a file in the cache, which it holds. A file that was
// copied once is known again without being read: it is the same if it is where it
// was on the client's file system and has not been touched since, to the nanosecond.
func (c *Cache) Copy(ctx context.Context, path string) (*os.File, error) {
	in, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("the file system does not say where the file is")
	}
	name := fmt.Sprintf("file\x00%d %d %d.%09d %d.%09d", s.Ino, s.Size, s.Mtim.Sec, s.Mtim.Nsec, s.Ctim.Sec, s.Ctim.Nsec)
	return c.get(ctx, name, func(old *record) (*record, error) {
		if old != nil {
			return old, nil
		}
		image, err := c.store(ctx, in, size, checksum{})
		return &record{Image: image}, err
	})
}

// open opens a file, and says how many bytes it takes.
func open(path string) (f *os.File, size int64, err error) {
	if f, err = os.Open(path); err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	size = info.Size()
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		size = min(size, s.Blocks*512) // what is not in holes
	}
	return f, size, nil
}

// CopyTo copies a disk image to a place of the allocation's own.
func CopyTo(ctx context.Context, path, to string, check Check) error {
	if err := check(path); err != nil {
		return err
	}
	in, _, err := open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.CreateTemp(filepath.Dir(to), "partial-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is none
	out := &sparse{f: f}
	err = copyAll(ctx, out, in)
	if err := errors.Join(err, out.end(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}
