package devcluster

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The demonstration's VM lies here while a cluster with [Options.VMImage] is up. The image boots by itself;
// the kernel and the initial RAM disk in it boot faster without.
const (
	VMImageDir   = "/var/lib/nomad-kubelet/images"
	VMImagePath  = VMImageDir + "/demo.img"
	VMKernelPath = VMImageDir + "/demo.vmlinuz"
	VMInitrdPath = VMImageDir + "/demo.initrd"
)

// vmFilesBuilt are the files, as the cache has them.
var vmFilesBuilt = map[string]string{VMImagePath: "disk", VMKernelPath: "vmlinuz", VMInitrdPath: "initrd"}

// Debian's packages that the VM is made of.
const (
	kernelPackage = "linux-image-cloud-amd64"
	agentPackage  = "qemu-guest-agent"
)

const (
	mebibyte  = 1 << 20
	imageSize = 32 * mebibyte
	// The partition starts where every partitioning tool would put it.
	partitionStart = 1 * mebibyte
	sectorSize     = 512
)

// vmCache is where a cache has the VM.
func vmCache(dir string) string { return filepath.Join(dir, "vm-"+vmVersion()) }

// BuildVMImage builds the VM unless the cache has it, which needs Debian's packages
// over the network.
func BuildVMImage(ctx context.Context, cache string) error {
	if exists(vmCache(cache)) {
		return nil
	}
	if err := buildVMImage(ctx, filepath.Join(cache, "vm-build"), vmCache(cache)); err != nil {
		return fmt.Errorf("build the demonstration's VM image: %w", err)
	}
	return nil
}

// installVMImage copies the VM to where clients may boot it.
func (c *Cluster) installVMImage(ctx context.Context) error {
	return c.step("VM image", func() (string, error) {
		if err := BuildVMImage(ctx, c.opts.CacheDir); err != nil {
			return "", err
		}
		if err := os.MkdirAll(VMImageDir, 0o755); err != nil {
			return "", err
		}
		for at, name := range vmFilesBuilt {
			if err := copyFile(filepath.Join(vmCache(c.opts.CacheDir), name), at, 0o644); err != nil {
				return "", err
			}
		}
		return VMImageDir, nil
	})
}

// buildVMImage makes a disk that boots: a FAT partition with the syslinux boot
// loader, Debian's cloud kernel and an initial RAM disk that is the whole
// system. Nothing is mounted for it. out is the directory of [vmFilesBuilt].
func buildVMImage(ctx context.Context, work, out string) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("there is none for %s", runtime.GOARCH)
	}
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	kernel, modules, err := fetchKernel(ctx, work)
	if err != nil {
		return err
	}
	agent, err := fetchAgent(ctx, work)
	if err != nil {
		return err
	}
	initrd, err := initramfs(modules, agent)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "initrd"), initrd, 0o644); err != nil {
		return err
	}
	const boot = "DEFAULT demo\nPROMPT 0\nLABEL demo\n LINUX vmlinuz\n INITRD initrd\n APPEND console=ttyS0 quiet panic=10\n"
	if err := os.WriteFile(filepath.Join(work, "syslinux.cfg"), []byte(boot), 0o644); err != nil {
		return err
	}
	disk := filepath.Join(work, "disk")
	if err := partitionedDisk(disk); err != nil {
		return err
	}
	at := fmt.Sprintf("%s@@%d", disk, partitionStart)
	for _, args := range [][]string{
		{"mkfs.fat", "-F", "16", "--offset", fmt.Sprint(partitionStart / sectorSize), "-h", fmt.Sprint(partitionStart / sectorSize), "-n", "DEMO", disk, fmt.Sprint((imageSize - partitionStart) / 1024)},
		{"mcopy", "-i", at, kernel, "::vmlinuz"},
		{"mcopy", "-i", at, filepath.Join(work, "initrd"), filepath.Join(work, "syslinux.cfg"), "::"},
		{"syslinux", "--install", "--offset", fmt.Sprint(partitionStart), disk},
	} {
		if err := run(ctx, work, args...); err != nil {
			return err
		}
	}
	if err := os.Rename(kernel, filepath.Join(work, "vmlinuz")); err != nil {
		return err
	}
	made := filepath.Join(work, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return err
	}
	for _, name := range vmFilesBuilt {
		if err := os.Rename(filepath.Join(work, name), filepath.Join(made, name)); err != nil {
			return err
		}
	}
	return os.Rename(made, out)
}

// fetchKernel unpacks Debian's kernel package without installing it.
func fetchKernel(ctx context.Context, work string) (kernel, modules string, err error) {
	depends, err := exec.CommandContext(ctx, "apt-cache", "depends", kernelPackage).Output()
	if err != nil || len(depends) == 0 {
		// A machine may have come without package lists.
		if err := run(ctx, work, "apt-get", "update", "-q"); err != nil {
			return "", "", err
		}
		if depends, err = exec.CommandContext(ctx, "apt-cache", "depends", kernelPackage).Output(); err != nil {
			return "", "", fmt.Errorf("find the package %s: %w", kernelPackage, err)
		}
	}
	name := ""
	for _, line := range strings.Split(string(depends), "\n") {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(dep, "linux-image-") {
			name = dep
		}
	}
	if name == "" {
		return "", "", errors.New(kernelPackage + " names no kernel")
	}
	root, err := unpack(ctx, work, name)
	if err != nil {
		return "", "", err
	}
	kernels, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	dirs, _ := filepath.Glob(filepath.Join(root, "*lib/modules/*/kernel"))
	if len(dirs) == 0 {
		dirs, _ = filepath.Glob(filepath.Join(root, "usr/lib/modules/*/kernel"))
	}
	if len(kernels) != 1 || len(dirs) != 1 {
		return "", "", fmt.Errorf("package %s holds %d kernels and %d sets of modules", name, len(kernels), len(dirs))
	}
	return kernels[0], dirs[0], nil
}

// fetchAgent unpacks Debian's qemu-guest-agent without installing it.
func fetchAgent(ctx context.Context, work string) (program string, err error) {
	root, err := unpack(ctx, work, agentPackage)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "usr/sbin/qemu-ga"), nil
}

// unpack fetches a package of Debian's and unpacks it into a directory.
func unpack(ctx context.Context, work, name string) (root string, err error) {
	// apt's own user may not write here, which it would warn of.
	if err := run(ctx, work, "apt-get", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(work, name+"_*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", name, len(debs))
	}
	root = filepath.Join(work, name)
	return root, run(ctx, work, "dpkg-deb", "-x", debs[0], root)
}

// partitionedDisk writes an empty disk with one active FAT partition and the
// boot code that loads it.
func partitionedDisk(path string) error {
	mbr := make([]byte, sectorSize)
	code, err := os.ReadFile("/usr/lib/syslinux/mbr/mbr.bin")
	if err != nil {
		return fmt.Errorf("boot code (package syslinux-common): %w", err)
	}
	copy(mbr[:440], code)
	entry := mbr[446:462]
	entry[0] = 0x80 // active
	entry[4] = 0x0e // FAT16, addressed by block numbers
	// Cylinders, heads and sectors say "too large, use the block numbers".
	copy(entry[1:4], []byte{0xfe, 0xff, 0xff})
	copy(entry[5:8], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], partitionStart/sectorSize)
	binary.LittleEndian.PutUint32(entry[12:], (imageSize-partitionStart)/sectorSize)
	mbr[510], mbr[511] = 0x55, 0xaa
	if err := os.WriteFile(path, mbr, 0o644); err != nil {
		return err
	}
	return os.Truncate(path, imageSize)
}

func run(ctx context.Context, dir string, args ...string) error {
	path := lookPath(args[0])
	if path == "" {
		return fmt.Errorf("%s is not installed", args[0])
	}
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "PATH="+searchPath())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, indent(strings.TrimSpace(string(out))))
	}
	return nil
}

// copyFile replaces dst at once, so that nobody reads half of it.
func copyFile(src, dst string, mode os.FileMode) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if err := os.WriteFile(dst+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(dst+".new", dst)
}
