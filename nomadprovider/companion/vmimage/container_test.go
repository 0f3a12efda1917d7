package vmimage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// taken is what a file takes on the disk, in bytes.
func taken(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// sparseFile is a file of 64 MiB, of which three blocks hold something.
func sparseFile(t *testing.T, path string) []byte {
	t.Helper()
	data := make([]byte, 64<<20)
	copy(data[5000:], "something")
	copy(data[10<<20-1:], "across two blocks")
	copy(data[len(data)-1:], "x")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return data
}

// Blocks of zeroes become holes, whether they were or not, in whatever pieces they
// come.
func TestSparse(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "full")
	data := sparseFile(t, from)
	to := filepath.Join(dir, "base")
	if err := CopyTo(t.Context(), from, to, anything); err != nil {
		t.Fatal(err)
	}
	same := func(path string) {
		t.Helper()
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, data) {
			t.Fatalf("the copy is another: %v", err)
		}
		if n := taken(t, path); n > 64<<10 {
			t.Errorf("the copy takes %d KiB", n>>10)
		}
	}
	same(to)
	c := newCache(t)
	f, err := c.Copy(t.Context(), to) // of a file with holes
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same(f.Name())
	for _, piece := range []int{1000, 4096, 16<<10 - 7} {
		out, err := os.Create(filepath.Join(dir, "pieces"))
		if err != nil {
			t.Fatal(err)
		}
		s := &sparse{f: out}
		for rest := data; len(rest) > 0; {
			n := min(piece, len(rest))
			if m, err := s.Write(rest[:n]); err != nil || m != n {
				t.Fatalf("%d, %v", m, err)
			}
			rest = rest[n:]
		}
		if err := errors.Join(s.end(), out.Close()); err != nil {
			t.Fatal(err)
		}
		same(out.Name())
	}
}

// A disk that was copied out of a container image is known again without being
// read, and one that has been touched since is read.
func TestCopyOnce(t *testing.T) {
	c, disk := newCache(t), filepath.Join(t.TempDir(), "disk.img")
	read := 0
	c.check = func(string) error { read++; return nil }
	for i, want := range []struct {
		content string
		read    int
	}{{"one", 1}, {"one", 1}, {"two", 2}} {
		if i != 1 {
			// Of the same length and time, as reproducible builds have them.
			if err := errors.Join(os.WriteFile(disk, []byte(want.content), 0o600), os.Chtimes(disk, time.Unix(0, 0), time.Unix(0, 0))); err != nil {
				t.Fatal(err)
			}
		}
		f, err := c.Copy(t.Context(), disk)
		if err != nil || string(content(t, f)) != want.content || read != want.read {
			t.Errorf("%d: %v, read %d times", i, err, read)
		}
		f.Close()
	}
}

func TestCopyIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	c, from := newCache(t), filepath.Join(dir, "text")
	if err := os.WriteFile(from, []byte("no disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Copy(t.Context(), from); err == nil || len(c.files(t, images)) != 0 {
		t.Errorf("%v, %q", err, c.files(t, images))
	}
	if err := CopyTo(t.Context(), from, filepath.Join(dir, Base), anything); err == nil || !gone(filepath.Join(dir, Base)) {
		t.Errorf("%v", err)
	}
}

func TestFind(t *testing.T) {
	build := func(files ...string) string {
		root, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			path := filepath.Join(root, f)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	two := build("disk/a.img", "disk/b.img", "other/c.img")
	linked := build("other/c.img", "disk/d/x")
	if err := errors.Join(os.Symlink("../other/c.img", filepath.Join(linked, "disk/link")), os.Symlink("other", filepath.Join(linked, "dirlink"))); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ root, given, want, err string }{
		{build("disk/a.qcow2"), "", "/disk/a.qcow2", ""},
		{two, "/disk/b.img", "/disk/b.img", ""},
		{two, "/other/c.img", "/other/c.img", ""},
		{two, "", "", "has 2 files below /disk"},
		{build("else"), "", "", "has no file below /disk"},
		{two, "/disk/none", "", "has no file /disk/none"},
		{two, "/disk", "", "/disk is no regular file"},
		{two, "/../../disk/a.img", "/disk/a.img", ""},
		{build("disk/d/x"), "", "", "/disk/d is no regular file"},
		{linked, "/disk/link", "", "/disk/link is no regular file"},
		{linked, "/dirlink/c.img", "", "/dirlink/c.img is no regular file"},
		// What is mounted belongs to somebody else.
		{"/", "/proc/version", "", "is no regular file of the container image"},
	} {
		got, err := Find(tc.root, tc.given)
		if tc.err == "" && (err != nil || got != tc.root+tc.want) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%q: %s, %v", tc.given, got, err)
		}
	}
}

// A try waits for the back-off of those before it, and says why it has failed.
func TestTry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	words := filepath.Join(dir, "local", "term")
	trouble := errors.New("404")
	if err := Try(t.Context(), dir, words, func(context.Context) error { return trouble }); !errors.Is(err, trouble) {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(words); err != nil || string(data) != "404" {
		t.Errorf("%q, %v", data, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Try(ctx, dir, words, func(context.Context) error { t.Error("tried at once"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	was := failed(filepath.Join(dir, failures))
	if was.Tries != 1 || time.Since(was.At) > time.Minute {
		t.Errorf("%+v", was)
	}
	for tries, want := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
		if got := (failure{Tries: tries}).backoff(); got != want*time.Second {
			t.Errorf("after %d: %s", tries, got)
		}
	}
	if err := Point(dir, "/cache/a"); err != nil {
		t.Fatal(err)
	}
	if err := Point(dir, "/cache/b"); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(dir, Base)); err != nil || to != "/cache/b" {
		t.Errorf("%s, %v", to, err)
	}
	if err := PutProgram(dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, Program)); err != nil || info.Mode().Perm() != 0o755 || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestNameServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# nameserver 9.9.9.9\nsearch a\nnameserver 127.0.0.53\nnameserver ::1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(nameServers(path), " "); got != "127.0.0.53 ::1" {
		t.Error(got)
	}
}
