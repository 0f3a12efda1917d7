package vmimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/filelock"
)

// Check says what is wrong with a file that is to be a disk image.
type Check func(path string) error

// Cache are the images of a client; see the package's description.
type Cache struct {
	dir   string
	check Check
	// usage and now are the file system's and the clock's, but in tests.
	usage func(dir string) (usage, error)
	now   func() time.Time
}

// The directories of a cache.
const (
	images  = "images"
	names   = "names"
	partial = "partial"
	locks   = "locks"
)

// Open makes the cache in a directory, unless it is there.
func Open(dir string, check Check) (*Cache, error) {
	for _, sub := range []string{images, names, partial, locks} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("virtualNodes[].hostAccess.imageCache: %w", err)
		}
	}
	return &Cache{dir: dir, check: check, usage: statfs, now: time.Now}, nil
}

// record is which image was behind a name last, and how its server tells whether it
// still is.
type record struct {
	Image    string `json:"image"`
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
}

// get returns the image behind a name, which it holds. fetch is called by one at a
// time for a name. It is given what is known, nil if there is no image, and
// returns the same where that will do, or the record of what it has stored.
func (c *Cache) get(ctx context.Context, name string, fetch func(*record) (*record, error)) (*os.File, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	lock, err := filelock.Exclusive(ctx, filepath.Join(c.dir, locks, id[:2]))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	at := filepath.Join(c.dir, names, id)
	old := recall(at)
	var image *os.File
	if old != nil {
		if image, err = c.hold(old.Image); err != nil {
			old = nil // evicted
		}
	}
	now, err := fetch(old)
	if err == nil && now != old {
		image.Close()
		if image, err = c.hold(now.Image); err == nil {
			err = remember(at, now)
		}
	}
	if err != nil {
		image.Close()
		return nil, err
	}
	return image, nil
}

// hold is [Hold] of an image that is asked for: its time says when it last was.
func (c *Cache) hold(image string) (*os.File, error) {
	path := filepath.Join(c.dir, images, filepath.Base(image))
	f, err := Hold(path)
	if err != nil {
		return nil, err
	}
	now := c.now()
	if err := os.Chtimes(path, now, now); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func recall(path string) *record {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	r := &record{}
	if json.Unmarshal(data, r) != nil || r.Image == "" {
		return nil
	}
	return r
}

func remember(path string, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// Of those with the name's lock there is one.
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// store takes an image of that size in bytes, -1 if it is not known, and returns
// its name. What is not whole, not what want says, or no disk is not kept.
func (c *Cache) store(ctx context.Context, r io.Reader, size int64, want checksum) (name string, err error) {
	if err := c.room(ctx, max(size, 0)); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Join(c.dir, partial), "")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	defer os.Remove(f.Name()) // after the rename there is none
	if err := filelock.Flock(f, unix.LOCK_EX); err != nil {
		return "", err
	}
	content := sha256.New()
	out := &sparse{f: f}
	w := io.MultiWriter(content, want.writer(), out)
	if size < 0 {
		w = io.MultiWriter(w, &meter{c: c, ctx: ctx})
	}
	if err := copyAll(ctx, w, r); err != nil {
		return "", c.full(err)
	}
	if err := errors.Join(out.end(), want.verify()); err != nil {
		return "", err
	}
	if err := c.check(f.Name()); err != nil {
		return "", err
	}
	// On the disk before it has its name: a power cut must leave no other content
	// under it.
	if err := errors.Join(f.Chmod(0o444), f.Sync()); err != nil {
		return "", c.full(err)
	}
	return c.keep(f, "sha256-"+hex.EncodeToString(content.Sum(nil)))
}

// keep gives what was stored its name, unless there is the same already, which VMs
// may have open.
func (c *Cache) keep(f *os.File, name string) (string, error) {
	same, err := c.hold(name)
	if err == nil {
		return name, same.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return name, os.Rename(f.Name(), filepath.Join(c.dir, images, name))
}

// copyAll copies until the end, or until ctx ends.
func copyAll(ctx context.Context, w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(w, interruptible{ctx, r}, make([]byte, 1<<20))
	return err
}

type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}
