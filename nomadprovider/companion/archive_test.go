package companion

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// archived are the files of an archive.
func archived(t *testing.T, disk string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(content)
	}
}

func archiveEntries(disk, agent string, files ...Entry) []Entry {
	p := &Program{Env: []Variable{{"A", Value{{Data: []byte("b")}}}}}
	return append(append([]Entry{{Disk: disk, Archive: true, SizeMB: 1, Agent: agent, Program: p}}, files...), Entry{End: true})
}

func TestArchive(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "pod.tar")
	none := filepath.Join(filepath.Dir(disk), "none.sock")
	long := strings.Repeat("long", 50_000)
	for _, step := range []struct{ data, want string }{{long, long}, {"short", "short"}, {"short", "short"}} {
		if err := write(t, archiveEntries(disk, none, file("volumes/v/a", step.data))...); err != nil {
			t.Fatal(err)
		}
		if got := archived(t, disk); got["volumes/v/a"] != step.want || got["environ"] != "A=b\x00" || got["apply"] == "" {
			t.Errorf("%.80q", got)
		}
		if info, err := os.Stat(disk); err != nil || info.Size() != 1<<20 || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		if env, err := environ(disk); err != nil || len(env) != 3 || env[0] != "A=b" || !strings.HasPrefix(env[1], "PATH=/") || env[2] != "HOME=/root" {
			t.Errorf("environment %q, %v", env, err)
		}
		// No VM runs, which would have less.
		if _, err := os.Stat(behind(disk)); !os.IsNotExist(err) {
			t.Errorf("a guest is behind: %v", err)
		}
	}
	if err := write(t, archiveEntries(disk, none, file("volumes/v/a", strings.Repeat("x", 1<<20)))...); err == nil || !strings.Contains(err.Error(), "at most 1 MiB") {
		t.Errorf("too much: %v", err)
	}
	if err := write(t, archiveEntries(disk, none, file("../a", "x"))...); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("outside: %v", err)
	}
	data, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := archiveLength(data); err != nil || n%512 != 0 || n > 20<<10 {
		t.Errorf("%d, %v", n, err)
	}
}

// A guest that does not answer is behind, and gets all when it does.
func TestArchiveBehind(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "pod.tar")
	silent := filepath.Join(filepath.Dir(disk), "qa.sock")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
			calls <- struct{}{}
		}
	}()
	put := func(data string) *archive {
		a := newArchive(Entry{Disk: disk, Archive: true, SizeMB: 1, Agent: silent})
		if err := errors.Join(a.add(file("a", data)), a.tar.Close()); err != nil {
			t.Fatal(err)
		}
		return a
	}
	if err := put("one").make(); err != nil {
		t.Fatal(err)
	}
	if err := put("two").rewrite(); err != nil {
		t.Fatal(err)
	}
	if err := deliver(t.Context(), disk, silent); !errors.Is(err, errSilent) {
		t.Errorf("%v", err)
	}
	<-calls
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	told := make(chan os.Signal, 1)
	go func() { KeepUp(ctx, told, disk, silent); close(ended) }()
	<-calls
	told <- signalBehind
	<-calls
	l.Close() // the VM has ended: the next one reads the disk
	told <- signalBehind
	for range 100 {
		if _, err := os.Stat(behind(disk)); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := os.Stat(behind(disk)); err == nil {
		t.Error("a guest that is no more is behind")
	}
	cancel()
	<-ended
}

// inGuest runs a script as root with a /run of its own.
func inGuest(t *testing.T, script string, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	full := "set -e; mount -t tmpfs run /run; mount -t tmpfs tmp /mnt; " + script
	out, err := exec.Command("unshare", append([]string{"-m", "sh", "-c", full, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// What a guest does with an archive: files of volumes, all at once, names that come
// and go, and mounts.
func TestApply(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none.sock")
	mounts := Entry{File: "mounts", Data: []byte("files 'v'\nshow 'volumes/v' '/mnt/a dir' 'ro'\nshow 'volumes/v/one' '/mnt/file' 'ro'\n" +
		"memory 'm' 'mode=0777,size=1m'\nshow 'disks/m/sub' '/mnt/m' 'rw'\n"), Mode: 0o600}
	for name, files := range map[string][]Entry{
		"first":  {file("volumes/v/one", "1"), file("volumes/v/two", "2"), file("volumes/v/.hidden", "h"), file("volumes/v/sub/file", "s")},
		"second": {file("volumes/v/one", "11"), file("volumes/v/three", "3")},
	} {
		if err := write(t, archiveEntries(filepath.Join(dir, name), none, append(files, mounts)...)...); err != nil {
			t.Fatal(err)
		}
	}
	for _, sh := range []string{"sh", "busybox sh"} {
		script := `
unpack() { mkdir -p /run/nomad-kubelet/$2; tar -xmf "$1" -C /run/nomad-kubelet/$2; ` + sh + ` /run/nomad-kubelet/$2/apply /run/nomad-kubelet/$2 $2; }
unpack "$1/first" boot
cd "/mnt/a dir"; cat one two .hidden sub/file /mnt/file; echo; readlink one; link=$(readlink ..data)
if touch x 2>/dev/null; then echo writable; fi; echo w >/mnt/m/w; cat /mnt/m/w
unpack "$1/second" live
cat one three; ls; ls -d .hidden 2>/dev/null || true; [ "$link" != "$(readlink ..data)" ] && echo changed; link=$(readlink ..data)
unpack "$1/second" live
[ "$link" = "$(readlink ..data)" ] && echo same
cd /; ls /run/nomad-kubelet; stat -c %a /run/nomad-kubelet/environ`
		want := "12hs1\n..data/one\nw\n113one\nthree\nchanged\nsame\ndisks\nenv\nenviron\nrun\nvolumes\n400\n"
		if got := inGuest(t, script, dir); got != want {
			t.Errorf("%s: %q, want %q", sh, got, want)
		}
	}
}
