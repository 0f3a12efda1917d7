package devcluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Prerequisite is something the machine must have, and the Debian package that
// brings it.
type Prerequisite struct {
	What    string
	Package string
	Present func() bool
}

// Program is the prerequisite of a program on PATH or in a system directory.
func Program(name, pkg string) Prerequisite {
	return Prerequisite{name, pkg, program(name)}
}

func program(name string) func() bool {
	return func() bool { return lookPath(name) != "" }
}

func prerequisites(ctx context.Context, o Options) []Prerequisite {
	list := []Prerequisite{
		{"iptables", "iptables", program("iptables")},
		{"ip", "iproute2", program("ip")},
		{"CNI plugins (in " + strings.Join(cniDirs, ", ") + ")", "containernetworking-plugins", func() bool { return findCNI() != "" }},
	}
	if o.OnPremNode {
		list = append(list, Prerequisite{"containerd", "containerd", program("containerd")}, Prerequisite{"runc", "runc", program("runc")})
	}
	if o.PodNetwork {
		list = append(list, Prerequisite{"nft", "nftables", program("nft")}, Prerequisite{"nsenter", "util-linux", program("nsenter")})
	}
	if !o.NoDocker && !o.NoNomad {
		list = append(list,
			Prerequisite{"Docker engine", "docker.io", func() bool {
				return newEngine(systemDocker).ping(ctx) == nil || lookPath("dockerd") != ""
			}},
			Prerequisite{"static busybox", "busybox-static", func() bool { _, err := StaticBusybox(); return err == nil }})
	}
	if !o.VMImage {
		return list
	}
	list = append(list, Prerequisite{"qemu", "qemu-system-x86", program("qemu-system-x86_64")})
	if exists(vmCache(o.CacheDir)) {
		return list
	}
	return append(list,
		Prerequisite{"mkfs.fat", "dosfstools", program("mkfs.fat")},
		Prerequisite{"mcopy", "mtools", program("mcopy")},
		Prerequisite{"syslinux", "syslinux", program("syslinux")},
		Prerequisite{"syslinux boot code", "syslinux-common", func() bool { return exists("/usr/lib/syslinux/mbr/mbr.bin") }})
}

// Prerequisites finds out what the machine lacks for opts. With install it
// fetches Debian's packages when it may; otherwise, or when that is not
// possible, the error names everything that is missing and where it comes from.
func Prerequisites(ctx context.Context, opts Options, install bool, out io.Writer) error {
	if err := opts.complete(); err != nil {
		return err
	}
	return Require(ctx, prerequisites(ctx, opts), install, out)
}

// Require is [Prerequisites] for a list of one's own.
func Require(ctx context.Context, list []Prerequisite, install bool, out io.Writer) error {
	var names, packages []string
	for _, p := range list {
		if p.Present() {
			continue
		}
		names = append(names, p.What+" (package "+p.Package+")")
		if !slices.Contains(packages, p.Package) {
			packages = append(packages, p.Package)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	missing := fmt.Errorf("missing: %s\non Debian: sudo apt-get install --no-install-recommends %s",
		strings.Join(names, ", "), strings.Join(packages, " "))
	if !install || os.Geteuid() != 0 || lookPath("apt-get") == "" {
		return missing
	}
	fmt.Fprintf(out, "Installing from Debian: %s\n", strings.Join(packages, " "))
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%w", args[0], err, missing)
		}
	}
	return Require(ctx, list, false, out)
}
