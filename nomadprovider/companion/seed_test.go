package companion

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	diskfile "github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

// onDisk reads a file of an ISO 9660 disk.
func onDisk(t *testing.T, disk, name string) string {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(diskfile.New(f, true), 0, 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(iso.Label(), " \x00"); got != "cidata" {
		t.Errorf("label %q", got)
	}
	r, err := iso.OpenFile("/"+name, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestSeed(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "seed.iso")
	list := func(userData string) []Entry {
		return []Entry{
			{Disk: disk, Label: "cidata"}, file("user-data", userData), file("meta-data", `{"instance-id":"u"}`),
			file("network-config", "version: 2\n"), {End: true},
		}
	}
	first := "#cloud-config\nusers: [{name: a}]\n" + strings.Repeat("# long\n", 2000)
	if err := write(t, list(first)...); err != nil {
		t.Fatal(err)
	}
	// Its instance has begun with it.
	if err := write(t, list("#cloud-config\n{}\n")...); err != nil {
		t.Fatal(err)
	}
	if got := onDisk(t, disk, "user-data"); got != first {
		t.Errorf("user-data %.40q", got)
	}
	if got := onDisk(t, disk, "network-config"); got != "version: 2\n" {
		t.Errorf("network-config %q", got)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if info, err := os.Stat(disk); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestSeedNotUnderstood(t *testing.T) {
	for _, tc := range []struct{ name, data, want string }{
		{"user-data", "#cloud-config\npassword: [s3cret\n", "see line"},
		{"user-data", "#cloud-config\n- s3cret\n", "keys and values"},
		{"user-data", "hello s3cret\n", "first line"},
		{"network-config", "a: b: s3cret\n", "keys and values"},
		{"../user-data", "#cloud-config\n", "outside"},
	} {
		dir := t.TempDir()
		err := write(t, Entry{Disk: dir + "/seed.iso", Label: "cidata"}, file(tc.name, tc.data), Entry{End: true})
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v, want %q", tc.data, err, tc.want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%q: left behind: %v", tc.data, left)
		}
	}
	for _, data := range []string{"#!/bin/sh\n: s3cret: [", "Content-Type: multipart/mixed; boundary=x\n", "#cloud-config\n{}\n", "#cloud-config\n", "## template: jinja\n#cloud-config\n{{"} {
		if err := understood("user-data", []byte(data)); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	}
}
