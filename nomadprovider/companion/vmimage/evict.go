package vmimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/filelock"
)

const (
	// highThreshold is how full, in per cent, the file system may be made before
	// images are evicted: the kubelet's imageGCHighThresholdPercent
	// (pkg/kubelet/apis/config/v1beta1/defaults.go).
	highThreshold = 85
	// young is an image that was asked for within this time: whoever asked may be
	// about to hold it.
	young = time.Hour
	// abandoned is what has not been written to for this long, by nobody who still
	// runs.
	abandoned = time.Minute
	// step is how far a fetch of unknown length looks ahead, in bytes.
	step = 64 << 20
)

// usage is how much a file system holds, and has left for us, in bytes.
type usage struct{ total, free int64 }

func statfs(dir string) (usage, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return usage{}, err
	}
	return usage{total: int64(s.Blocks) * s.Bsize, free: int64(s.Bavail) * s.Bsize}, nil
}

// takes says whether the file system takes so many bytes and is not too full then.
func (u usage) takes(need int64) bool {
	return need <= u.free && (u.total-u.free+need)/100 <= u.total/100*highThreshold/100
}

// room makes room for so many bytes, as far as it has to and can: the images that
// nobody uses are evicted, the one that was not asked for longest first. The error
// is of a file system that has not so much left.
func (c *Cache) room(ctx context.Context, need int64) error {
	lock, err := filelock.Exclusive(ctx, filepath.Join(c.dir, locks, "evict"))
	if err != nil {
		return err
	}
	defer lock.Close()
	c.tidy()
	u, err := c.usage(c.dir)
	if err != nil || u.takes(need) {
		return err
	}
	for _, path := range c.byAge(images) {
		if !c.evict(path, young) {
			continue
		}
		if u, err = c.usage(c.dir); err != nil || u.takes(need) {
			return err
		}
	}
	if need > u.free {
		return tooLarge(need, u.free)
	}
	return nil
}

func tooLarge(need, free int64) error {
	return fmt.Errorf("it takes %s, and the client has %s left where virtualNodes[].hostAccess.imageCache is, with no image in it that can be evicted",
		mib(need), mib(free))
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// full tells a file system without room from other trouble.
func (c *Cache) full(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("the client has no room left for it where virtualNodes[].hostAccess.imageCache is: %w", err)
}

// evict removes a file that nobody uses and that is no younger than age.
func (c *Cache) evict(path string, age time.Duration) bool {
	f := unused(path)
	if f == nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	return err == nil && c.now().Sub(info.ModTime()) >= age && os.Remove(path) == nil
}

// byAge lists the files of a directory of the cache, the oldest first.
func (c *Cache) byAge(dir string) []string {
	type file struct {
		path string
		at   time.Time
	}
	entries, _ := os.ReadDir(filepath.Join(c.dir, dir)) // what cannot be listed is not evicted
	var files []file
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, file{filepath.Join(c.dir, dir, e.Name()), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return a.at.Compare(b.at) })
	paths := make([]string, len(files))
	for i := range files {
		paths[i] = files[i].path
	}
	return paths
}

// tidy removes what was begun by processes that were killed, and the names of
// images that were evicted.
func (c *Cache) tidy() {
	for _, path := range c.byAge(partial) {
		c.evict(path, abandoned)
	}
	for _, path := range c.byAge(names) {
		r := recall(path)
		if r != nil {
			if _, err := os.Stat(filepath.Join(c.dir, images, filepath.Base(r.Image))); err == nil {
				continue
			}
		}
		c.evict(path, young)
	}
}

// meter makes room for what is written as it comes.
type meter struct {
	c     *Cache
	ctx   context.Context
	ahead int64
}

func (m *meter) Write(p []byte) (int, error) {
	if m.ahead -= int64(len(p)); m.ahead < 0 {
		m.ahead = step
		if err := m.c.room(m.ctx, step); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
