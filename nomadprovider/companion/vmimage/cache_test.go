package vmimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/internal/filelock"
)

// anything is a check that takes all but what says that it is no disk.
func anything(path string) error {
	data, err := os.ReadFile(path)
	if err == nil && bytes.HasPrefix(data, []byte("no disk")) {
		err = errors.New("is no disk image")
	}
	return err
}

// newCache has room, however full the disk of this machine is.
func newCache(t *testing.T) *Cache {
	t.Helper()
	c, err := Open(filepath.Join(t.TempDir(), "cache"), anything)
	if err != nil {
		t.Fatal(err)
	}
	c.holds(t, 1<<40, 0)
	return c
}

// files lists what a directory of the cache holds.
func (c *Cache) files(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.dir, dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// server is a web server that counts what it is asked for and what it sends.
type server struct {
	*httptest.Server
	asked, sent atomic.Int32
	// content is sent with its length, and an ETag, where there is a tag.
	content []byte
	tag     string
	// wait, if there is one, holds each request up once it is told in came.
	wait, came chan struct{}
}

func newServer(t *testing.T) *server {
	s := &server{content: bytes.Repeat([]byte("disk"), 1<<20), came: make(chan struct{}, 100)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.wait != nil {
			s.came <- struct{}{}
			<-s.wait
		}
		if strings.HasSuffix(r.URL.Path, "/none") {
			http.NotFound(w, r)
			return
		}
		if s.tag != "" {
			w.Header().Set("ETag", s.tag)
		}
		if s.tag != "" && r.Header.Get("If-None-Match") == s.tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		s.sent.Add(1)
		if !strings.HasSuffix(r.URL.Path, "/endless") {
			w.Header().Set("Content-Length", fmt.Sprint(len(s.content)))
		}
		_, _ = w.Write(s.content)
	}))
	t.Cleanup(s.Close)
	return s
}

func content(t *testing.T, f *os.File) []byte {
	t.Helper()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Whatever many pods ask for at once is fetched once, and later ones do not ask.
func TestFetchOnce(t *testing.T) {
	c, s := newCache(t), newServer(t)
	s.wait = make(chan struct{})
	u := URL{Address: s.URL + "/disk", Checksum: fmt.Sprintf("sha256:%X", sha256.Sum256(s.content)), Policy: "IfNotPresent"}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			f, err := c.Fetch(t.Context(), u)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if !bytes.Equal(content(t, f), s.content) {
				t.Error("the image is another")
			}
		})
	}
	close(s.wait)
	all.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	want := fmt.Sprintf("sha256-%x", sha256.Sum256(s.content))
	if have := c.files(t, images); len(have) != 1 || have[0] != want || len(c.files(t, partial)) != 0 {
		t.Errorf("images %q, partial %q", have, c.files(t, partial))
	}
	// The same content from elsewhere is fetched, and stored but once.
	u.Address, u.Checksum = s.URL+"/other", fmt.Sprintf("sha512:%x", sha512.Sum512(s.content))
	if f, err := c.Fetch(t.Context(), u); err != nil || filepath.Base(f.Name()) != want || s.asked.Load() != 2 {
		t.Errorf("%v, asked %d times", err, s.asked.Load())
	}
}

// One who waits for another's fetch and gives up leaves.
func TestFetchGivesUp(t *testing.T) {
	c, s := newCache(t), newServer(t)
	s.wait = make(chan struct{})
	first := make(chan error, 1)
	u := URL{Address: s.URL + "/disk"}
	go func() {
		_, err := c.Fetch(t.Context(), u)
		first <- err
	}()
	<-s.came
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() {
		_, err := c.Fetch(ctx, u)
		second <- err
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(s.wait)
	if err := <-first; err != nil {
		t.Errorf("%v", err)
	}
	if s.asked.Load() != 1 {
		t.Errorf("asked %d times", s.asked.Load())
	}
}

// Without a checksum the pull policy says whether the server is asked again, and it
// sends nothing that it has not changed.
func TestFetchPolicy(t *testing.T) {
	c, s := newCache(t), newServer(t)
	s.tag = `"1"`
	get := func(policy string, wantAsked, wantSent int32) {
		t.Helper()
		f, err := c.Fetch(t.Context(), URL{Address: s.URL + "/disk", Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if s.asked.Load() != wantAsked || s.sent.Load() != wantSent || policy == PullAlways && !bytes.Equal(content(t, f), s.content) {
			t.Errorf("%s: asked %d times, sent %d", policy, s.asked.Load(), s.sent.Load())
		}
	}
	if _, err := c.Fetch(t.Context(), URL{Address: s.URL + "/disk", Policy: PullNever}); err == nil || !strings.Contains(err.Error(), "imagePullPolicy is Never") {
		t.Errorf("%v", err)
	}
	get("IfNotPresent", 1, 1)
	get("IfNotPresent", 1, 1)
	get(PullNever, 1, 1)
	get(PullAlways, 2, 1)
	s.tag, s.content = `"2"`, []byte("another")
	get("", 2, 1)
	get(PullAlways, 3, 2)
	get(PullAlways, 4, 2)
}

// What is wrong is said, and nothing of it is kept.
func TestFetchRefuses(t *testing.T) {
	c, s := newCache(t), newServer(t)
	for _, tc := range []struct{ path, sum, content, want string }{
		{"/disk", "sha256:" + strings.Repeat("0", 64), "disk", "correct annotation nomad-kubelet.io/image-checksum"},
		{"/disk", "sha1:" + strings.Repeat("0", 40), "disk", "the checksum is sha1:"},
		{"/disk", "sha256:abc", "disk", "64 hexadecimal digits"},
		{"/disk", "crc32:12345678", "disk", "is none of md5:, sha1:, sha256: and sha512:"},
		{"/none", "", "disk", "404 Not Found"},
		{"/disk", "", "no disk at all", "is no disk image"},
	} {
		s.content = []byte(tc.content)
		if f, err := c.Fetch(t.Context(), URL{Address: s.URL + tc.path, Checksum: tc.sum}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, %v", tc.path, tc.sum, f, err)
		}
	}
	s.Close()
	if _, err := c.Fetch(t.Context(), URL{Address: s.URL + "/disk"}); err == nil || strings.Contains(err.Error(), s.URL) {
		t.Errorf("a server that is not there: %v", err)
	}
	for _, dir := range []string{images, names, partial} {
		if have := c.files(t, dir); len(have) != 0 {
			t.Errorf("%s holds %q", dir, have)
		}
	}
}

// A download that is cut short is not an image, whatever its length was told to be.
func TestFetchCutShort(t *testing.T) {
	c := newCache(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/length") {
			w.Header().Set("Content-Length", "1000")
		}
		_, _ = w.Write(bytes.Repeat([]byte("x"), 512))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	for _, path := range []string{"/length", "/chunks"} {
		if f, err := c.Fetch(t.Context(), URL{Address: s.URL + path}); err == nil {
			t.Errorf("%s: %s", path, f.Name())
		}
	}
	if have := append(c.files(t, images), c.files(t, partial)...); len(have) != 0 {
		t.Errorf("kept %q", have)
	}
}

// holds has the cache on a file system of that size, where others take so much.
func (c *Cache) holds(t *testing.T, total, others int64) {
	t.Helper()
	c.usage = func(dir string) (usage, error) {
		used := others
		for _, name := range c.files(t, images) {
			info, err := os.Stat(filepath.Join(dir, images, name))
			if err == nil {
				used += info.Size()
			}
		}
		return usage{total: total, free: total - used}, nil
	}
}

// old stores an image that was asked for that long ago.
func (c *Cache) old(t *testing.T, what string, size int, age time.Duration) string {
	t.Helper()
	name, err := c.store(t.Context(), strings.NewReader(what+strings.Repeat(".", size-len(what))), int64(size), checksum{})
	if err != nil {
		t.Fatal(err)
	}
	path, at := filepath.Join(c.dir, images, name), time.Now().Add(-age)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
	return path
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// Images are evicted when the disk would be too full, those that were asked for
// longest ago first, and no more of them than is needed; not those in use, nor those
// that were asked for a moment ago.
func TestEvict(t *testing.T) {
	c := newCache(t)
	held := c.old(t, "held", 1000, 9*time.Hour)
	open := c.old(t, "open", 1000, 8*time.Hour)
	third, second, first := c.old(t, "third", 1000, 2*time.Hour), c.old(t, "second", 1000, 3*time.Hour), c.old(t, "first", 1000, 4*time.Hour)
	young := c.old(t, "young", 1000, 10*time.Minute)
	hold, err := Hold(held)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	qemu, err := os.Open(open)
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	if err := unix.FcntlFlock(qemu.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1}); err != nil {
		t.Fatal(err)
	}

	c.holds(t, 10000, 1000)
	if err := c.room(t.Context(), 1000); err != nil || gone(first) {
		t.Errorf("80 of 100 are not too much: %v", err)
	}
	if err := c.room(t.Context(), 3000); err != nil || !gone(first) || !gone(second) || gone(third) {
		t.Errorf("100 of 100: %v, gone are %t, %t, %t", err, gone(first), gone(second), gone(third))
	}
	// What goes beyond the threshold is taken as long as it fits.
	if err := c.room(t.Context(), 6000); err != nil || !gone(third) {
		t.Errorf("%v, gone %t", err, gone(third))
	}
	err = c.room(t.Context(), 6001)
	if err == nil || !strings.Contains(err.Error(), "hostAccess.imageCache") || gone(held) || gone(open) || gone(young) {
		t.Errorf("%v, gone are %t, %t, %t", err, gone(held), gone(open), gone(young))
	}
	hold.Close()
	qemu.Close()
	if err := c.room(t.Context(), 6001); err != nil || !gone(held) {
		t.Errorf("%v, gone %t", err, gone(held))
	}
}

// An image that is larger than what the client has is refused before it is fetched,
// or, where its length is not known, before it has filled the disk.
func TestFetchTooLarge(t *testing.T) {
	c, s := newCache(t), newServer(t)
	c.holds(t, 4<<20, 1<<20)
	for _, path := range []string{"/disk", "/endless"} {
		if _, err := c.Fetch(t.Context(), URL{Address: s.URL + path}); err == nil || !strings.Contains(err.Error(), "the client has 3 MiB left") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if have := append(c.files(t, images), c.files(t, partial)...); len(have) != 0 {
		t.Errorf("kept %q", have)
	}
}

// An image that was evicted is fetched again, and what is left of it and of killed
// fetches goes.
func TestAfterEviction(t *testing.T) {
	c, s := newCache(t), newServer(t)
	u := URL{Address: s.URL + "/disk"}
	f, err := c.Fetch(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	past := time.Now().Add(-2 * time.Hour)
	left := filepath.Join(c.dir, partial, "1")
	if err := errors.Join(os.WriteFile(left, nil, 0o600), os.Chtimes(left, past, past), os.Chtimes(f.Name(), past, past)); err != nil {
		t.Fatal(err)
	}
	writes, err := os.Create(filepath.Join(c.dir, partial, "2"))
	if err == nil {
		err = errors.Join(filelock.Flock(writes, unix.LOCK_EX), os.Chtimes(writes.Name(), past, past))
	}
	if err != nil {
		t.Fatal(err)
	}
	defer writes.Close()
	c.holds(t, 10<<20, 9<<20)
	if err := c.room(t.Context(), 0); err != nil || !gone(f.Name()) || !gone(left) || gone(writes.Name()) {
		t.Errorf("%v; gone: %t, %t, %t", err, gone(f.Name()), gone(left), gone(writes.Name()))
	}
	for _, id := range c.files(t, names) {
		if err := os.Chtimes(filepath.Join(c.dir, names, id), past, past); err != nil {
			t.Fatal(err)
		}
	}
	c.usage = statfs
	if err := c.room(t.Context(), 0); err != nil || len(c.files(t, names)) != 0 {
		t.Errorf("%v; names %q", err, c.files(t, names))
	}
	f, err = c.Fetch(t.Context(), u)
	if err != nil || s.sent.Load() != 2 {
		t.Fatalf("%v, sent %d times", err, s.sent.Load())
	}
	f.Close()
}

// Holding and evicting at once ends with an image that is held and there, or with
// none.
func TestHoldRacesEviction(t *testing.T) {
	c := newCache(t)
	for i := range 50 {
		path := c.old(t, fmt.Sprint(i), 10, 2*time.Hour)
		var all sync.WaitGroup
		all.Go(func() { c.evict(path, time.Hour) })
		f, err := Hold(path)
		all.Wait()
		switch {
		case err == nil && gone(path):
			t.Fatal("an image that is held was evicted")
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
		f.Close()
	}
}
