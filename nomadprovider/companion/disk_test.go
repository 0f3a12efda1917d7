package companion

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// qemuImg runs qemu's own tool, which knows the format best.
func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
	out, err := exec.Command("qemu-img", args...).Output()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "base.img"), filepath.Join(dir, "base.qcow2")
	content := bytes.Repeat([]byte("base"), 512*1024)
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	data, err := overlay(3<<30, "", "")
	if err == nil {
		err = os.WriteFile(qcow, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		e      Entry
		size   int64
		format string
	}{
		{"raw", Entry{Base: raw, Backing: raw}, 2 << 20, "raw"},
		{"raw, larger", Entry{Base: raw, Backing: "base.img", SizeMB: 100}, 100 << 20, "raw"},
		{"qcow2", Entry{Base: qcow, Backing: qcow}, 3 << 30, "qcow2"},
		{"empty", Entry{SizeMB: 1024}, 1 << 30, ""},
		{"vast", Entry{SizeMB: 16 << 20}, 16 << 40, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.e.Disk = filepath.Join(dir, "disk")
			defer os.Remove(tc.e.Disk)
			if err := write(t, tc.e, Entry{End: true}); err != nil {
				t.Fatal(err)
			}
			if format, size, err := inspect(tc.e.Disk); tc.e.Base == "" && (format != "qcow2" || size != uint64(tc.size) || err != nil) {
				t.Errorf("%s, %d, %v", format, size, err)
			}
			qemuImg(t, "check", "-q", tc.e.Disk)
			var info struct {
				Size    int64  `json:"virtual-size"`
				Backing string `json:"backing-filename"`
				Format  string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal(qemuImg(t, "info", "--output=json", tc.e.Disk), &info); err != nil {
				t.Fatal(err)
			}
			if info.Size != tc.size || info.Backing != tc.e.Backing || info.Format != tc.format {
				t.Errorf("%+v, want %d bytes over %q", info, tc.size, tc.e.Backing)
			}
			if tc.name != "raw" {
				return
			}
			out := filepath.Join(dir, "out")
			qemuImg(t, "convert", "-O", "raw", tc.e.Disk, out)
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
				t.Errorf("it does not hold what its image does: %v", err)
			}
		})
	}
}

// What a VM has written stays when the list is handed over again.
func TestDiskIsMadeOnce(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := write(t, Entry{Disk: disk, SizeMB: 1}, Entry{End: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, []byte("the guest's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(t, Entry{Disk: disk, Base: "/none", SizeMB: 2}, Entry{End: true}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(disk); string(got) != "the guest's" {
		t.Errorf("%.20q", got)
	}
}

func TestDiskRefused(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	qcow := func(size uint64, backing string) []byte {
		data, err := overlay(size, backing, "raw")
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	encrypted := qcow(1<<20, "")
	encrypted[35] = 2
	future := qcow(1<<20, "")
	future[7] = 9
	for _, tc := range []struct {
		base string
		mb   int64
		want string
	}{
		{filepath.Join(dir, "none"), 0, "cannot be read"},
		{dir, 0, "is no file"},
		{put("empty", nil), 0, "it has 0 bytes"},
		{put("text", []byte("hello")), 0, "it has 5 bytes"},
		{put("page", []byte("<html>"+strings.Repeat(" ", 506))), 0, "but a text"},
		{put("packed", append([]byte("\x1f\x8b"), make([]byte, 1022)...)), 0, "but gzip"},
		{put("backed", qcow(1<<20, "/etc/shadow")), 0, "more than one file"},
		{put("encrypted", encrypted), 0, "is encrypted"},
		{put("future", future), 0, "version 9"},
		{put("large", make([]byte, 3<<20)), 2, "3 MiB, which is more than the disk's 2 MiB"},
	} {
		disk := filepath.Join(dir, "disk")
		err := write(t, Entry{Disk: disk, Base: tc.base, Image: "/images/b", Backing: "../b", SizeMB: tc.mb}, Entry{End: true})
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "/images/b") {
			t.Errorf("%s: %v, want %q", filepath.Base(tc.base), err, tc.want)
		}
		if _, err := os.Stat(disk); err == nil {
			t.Errorf("%s: there is a disk", tc.base)
		}
	}
}
