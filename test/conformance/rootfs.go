package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// What the upstream images bring beside their own program: Alpine's packages in
// agnhost's Dockerfile, nginx of the images of that name.
const debianSuite = "bookworm"

var debianPackages = []string{"curl", "wget", "iproute2", "netcat-openbsd", "bind9-dnsutils", "nginx-light"}

// notInBase is what images have from their engine, or nobody reads.
var notInBase = []string{
	"./dev/*", "./proc/*", "./sys/*", "./run/*", "./tmp/*", "./var/cache/apt/*", "./var/lib/apt/lists/*",
	"./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*", "./etc/resolv.conf", "./etc/hostname",
}

// makeBase writes a small Debian as a tar archive to file, unless it is there.
// It takes a minute or two.
func makeBase(ctx context.Context, file string, out io.Writer) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if err := devcluster.Require(ctx, []devcluster.Prerequisite{devcluster.Program("debootstrap", "debootstrap")}, true, out); err != nil {
		return err
	}
	fmt.Fprintf(out, "Building the base of the suite's images: Debian %s (a minute or two)\n", debianSuite)
	root, err := os.MkdirTemp("", "nkconformance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := run(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(debianPackages, ","), debianSuite, root); err != nil {
		return fmt.Errorf("make the images' base: %w", err)
	}
	args := []string{"--create", "--numeric-owner", "--directory=" + root, "--file=" + file + ".part"}
	for _, pattern := range notInBase {
		args = append(args, "--exclude="+pattern)
	}
	if err := run(ctx, "tar", append(args, ".")...); err != nil {
		return fmt.Errorf("pack the images' base: %w", err)
	}
	return os.Rename(file+".part", file)
}

// run runs a program; its error carries the end of what it wrote.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out[max(0, len(out)-2000):])))
	}
	return nil
}

// base is what the layers above it have to know of the base.
type base struct {
	passwd, group string
	programs      map[string]bool // by name
}

func readBase(file string) (*base, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := &base{programs: map[string]bool{}}
	files := map[string]*string{"etc/passwd": &b.passwd, "etc/group": &b.group}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Base(file), err)
		}
		name := path.Clean(h.Name)
		if dir := path.Base(path.Dir(name)); dir == "bin" || dir == "sbin" {
			b.programs[path.Base(name)] = true
		}
		if to := files[name]; to != nil {
			text, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			*to = string(text)
		}
	}
	if b.passwd == "" || b.group == "" {
		return nil, fmt.Errorf("%s: etc/passwd or etc/group is missing", filepath.Base(file))
	}
	return b, nil
}
