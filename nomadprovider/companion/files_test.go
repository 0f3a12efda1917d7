package companion

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func write(t *testing.T, entries ...Entry) error {
	t.Helper()
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, e := range entries {
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return WriteFiles(&buf)
}

func file(name, data string) Entry { return Entry{File: name, Data: []byte(data), Mode: 0o644} }

// shown lists what users see: names without leading dots, and contents.
func shown(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(p)
			rel, _ := filepath.Rel(path, p)
			out = append(out, strings.TrimSuffix(e.Name()+"/"+rel, "/.")+"="+string(data))
			return err
		})
	}
	return strings.Join(out, " ")
}

func TestWriteFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	for _, step := range []struct {
		entries []Entry
		want    string
	}{
		{[]Entry{file("a", "1"), file("sub/b", "2"), file("sub/deep/c", "3")}, "a=1 sub/b=2 sub/deep/c=3"},
		{[]Entry{file("a", "1"), file("n", "new")}, "a=1 n=new"}, // gone and new keys
		{nil, ""},
		{[]Entry{{File: "bin", Data: []byte{0, 255, 10}, Mode: 0o400}}, "bin=\x00\xff\n"},
	} {
		if err := write(t, append(append([]Entry{{Volume: dir}}, step.entries...), Entry{End: true})...); err != nil {
			t.Fatal(err)
		}
		if got := shown(t, dir); got != step.want {
			t.Errorf("got %q, want %q", got, step.want)
		}
		if old, _ := filepath.Glob(filepath.Join(dir, "..*")); len(old) != 2 {
			t.Errorf("left over: %v", old)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "bin"))
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestUnchangedFilesStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	version := func() string {
		t.Helper()
		v, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if err := write(t, Entry{Volume: dir}, file("a", "1"), file("b", "2"), Entry{End: true}); err != nil {
		t.Fatal(err)
	}
	first := version()
	for name, tc := range map[string]struct {
		entries []Entry
		same    bool
	}{
		"same":       {[]Entry{file("a", "1"), file("b", "2")}, true},
		"one less":   {[]Entry{file("a", "1")}, false},
		"other mode": {[]Entry{file("a", "1"), {File: "b", Data: []byte("2"), Mode: 0o600}}, false},
		"other data": {[]Entry{file("a", "1"), file("b", "3")}, false},
	} {
		if err := write(t, append(append([]Entry{{Volume: dir}}, tc.entries...), Entry{End: true})...); err != nil {
			t.Fatal(err)
		}
		if got := version() == first; got != tc.same {
			t.Errorf("%s: unchanged %v", name, got)
		}
		if err := write(t, Entry{Volume: dir}, file("a", "1"), file("b", "2"), Entry{End: true}); err != nil {
			t.Fatal(err)
		}
		first = version()
	}
}

// A reader never sees one file of one version and another of the next.
func TestVersionsChangeAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	change := func(i int) {
		if err := write(t, Entry{Volume: dir}, file("a", fmt.Sprint(i)), file("b", fmt.Sprint(i)), Entry{End: true}); err != nil {
			t.Error(err)
		}
	}
	change(0)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 200 {
			change(i)
		}
	})
	stop := make(chan struct{})
	go func() { wg.Wait(); close(stop) }()
	for reading := true; reading; {
		select {
		case <-stop:
			reading = false
		default:
		}
		version, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal("there was a moment without a version")
		}
		a, errA := os.ReadFile(filepath.Join(dir, version, "a"))
		b, errB := os.ReadFile(filepath.Join(dir, version, "b"))
		if errA == nil && errB == nil && string(a) != string(b) {
			t.Fatalf("%s beside %s", a, b)
		}
		if _, err := os.ReadFile(filepath.Join(dir, "a")); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func TestBrokenOffChangesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	if err := write(t, Entry{Volume: dir}, file("a", "1"), Entry{End: true}); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]Entry{
		"no end":    {{Volume: dir}, file("a", "2")},
		"outside":   {{Volume: dir}, file("a", "2"), file("../../x", "2"), {End: true}},
		"no volume": {file("a", "2"), {End: true}},
	} {
		if err := write(t, entries...); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := shown(t, dir); got != "a=1" {
			t.Errorf("%s: %q", name, got)
		}
		if old, _ := filepath.Glob(filepath.Join(dir, "..*")); len(old) != 2 {
			t.Errorf("%s: left over: %v", name, old)
		}
	}
}

func TestDirs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := write(t, Entry{Dir: dir, Mode: 0o2777, GID: os.Getgid()}, Entry{End: true}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o777 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
