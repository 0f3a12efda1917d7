package companion

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeepDisk(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	if err := keepDisk(Entry{Disk: disk, Raw: true, SizeMB: 8, ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "has no disk.img") {
		t.Errorf("nothing to read: %v", err)
	}
	if err := keepDisk(Entry{Disk: disk, Raw: true, SizeMB: 8}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(disk)
	if err != nil || info.Size() != 8<<20 || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(disk, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		if err := keepDisk(Entry{Disk: disk, Raw: true, SizeMB: 16, ReadOnly: readOnly}); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(disk); err != nil || string(data) != "kept" {
		t.Errorf("%q, %v", data, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
}

// What a container may have left in the place of the disk is not opened.
func TestKeepDiskRefusesOthers(t *testing.T) {
	for name, put := range map[string]func(dir, disk string) error{
		"link":      func(_, disk string) error { return os.Symlink("/etc/passwd", disk) },
		"dangling":  func(_, disk string) error { return os.Symlink("nowhere", disk) },
		"directory": func(_, disk string) error { return os.Mkdir(disk, 0o700) },
		"two names": func(dir, disk string) error {
			other := filepath.Join(dir, "other")
			if err := os.WriteFile(other, nil, 0o600); err != nil {
				return err
			}
			return os.Link(other, disk)
		},
	} {
		dir := t.TempDir()
		disk := filepath.Join(dir, "disk.img")
		if err := put(dir, disk); err != nil {
			t.Fatal(err)
		}
		if err := keepDisk(Entry{Disk: disk, Raw: true, SizeMB: 8}); err == nil {
			t.Errorf("%s: taken for a disk", name)
		}
	}
}

// A kept directory is made for all, and stays as it is but for its group.
func TestKeptDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	made := Entry{Dir: dir, Mode: 0o777, Kept: true}
	mode := func() os.FileMode {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode() &^ os.ModeDir
	}
	for _, step := range []struct {
		gid  int
		want os.FileMode
	}{{0, 0o777}, {0, 0o700}, {os.Getgid(), 0o770 | os.ModeSetgid}} {
		made.GID = step.gid
		if step.want != 0o777 {
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if step.gid == 0 && os.Getgid() == 0 && step.want&os.ModeSetgid != 0 {
			made.GID = 2000
		}
		if err := makeDir(made); err != nil {
			t.Fatal(err)
		}
		if got := mode(); got != step.want {
			t.Errorf("group %d: mode %v, want %v", made.GID, got, step.want)
		}
	}
}
