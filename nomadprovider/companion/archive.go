package companion

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// An archive is a VM's disk whose content is a tar file of what the pod gives its
// guest. The guest unpacks it at every boot, so it is changed in place: the VM has
// it open. Until a guest that runs has it, too, a file beside it says so.

// What a guest does with it, written for the shell and the tools that every Linux
// has, busybox, too. The first is cloud-init's vendor-data.
var (
	//go:embed guest/boot.sh
	guestBoot []byte
	//go:embed guest/apply.sh
	guestApply []byte
	//go:embed guest/run.sh
	guestRun []byte
)

// archive is one version under construction.
type archive struct {
	disk, agent string
	size        int64
	buf         bytes.Buffer
	tar         *tar.Writer
	err         error // of the program
}

func newArchive(e Entry) *archive {
	a := &archive{disk: e.Disk, agent: e.Agent, size: e.SizeMB * mebibyte}
	a.tar = tar.NewWriter(&a.buf)
	files := []Entry{{File: "apply", Data: guestApply, Mode: 0o500}, {File: "run", Data: guestRun, Mode: 0o500}}
	if e.Program != nil {
		files = append(files, e.Program.files(os.Getenv)...)
	}
	for _, f := range files {
		a.err = errors.Join(a.err, a.add(f))
	}
	return a
}

// add takes a file. Without times, the same files are the same bytes.
func (a *archive) add(e Entry) error {
	if !filepath.IsLocal(e.File) {
		return fmt.Errorf("file %q lies outside its disk", e.File)
	}
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.File, Mode: int64(e.Mode), Size: int64(len(e.Data))}); err != nil {
		return err
	}
	_, err := a.tar.Write(e.Data)
	return err
}

// commit brings disk and guest up to date.
func (a *archive) commit() error {
	if err := errors.Join(a.err, a.tar.Close()); err != nil {
		return err
	}
	if size := int64(a.buf.Len()); size > a.size {
		return fmt.Errorf("the files for the VM's guest come to %d KiB, of at most %d MiB", size>>10, a.size/mebibyte)
	}
	ctx, cancel := context.WithTimeout(context.Background(), handing)
	defer cancel()
	lock, err := exclusive(ctx, a.disk)
	if err != nil {
		return err
	}
	defer lock.Close()
	was, err := os.ReadFile(a.disk)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return a.make()
	case err != nil:
		return err
	case !bytes.Equal(bytes.TrimRight(was, "\x00"), bytes.TrimRight(a.buf.Bytes(), "\x00")):
		if err := a.rewrite(); err != nil {
			return err
		}
	}
	err = deliver(ctx, a.disk, a.agent)
	if errors.Is(err, errSilent) {
		return tellFirst() // a guest that boots, or has no agent
	}
	return err
}

// make makes the disk, which takes no more room than the archive.
func (a *archive) make() error {
	f, err := os.CreateTemp(filepath.Dir(a.disk), tempStyle)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is none
	_, err = f.Write(a.buf.Bytes())
	if err := errors.Join(err, f.Truncate(a.size), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), a.disk)
}

// rewrite changes a disk that a VM may have open.
func (a *archive) rewrite() error {
	if err := os.WriteFile(behind(a.disk), nil, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(a.disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(a.buf.Bytes(), 0)
	// What follows becomes zeroes, as beyond the end of the archive.
	err = errors.Join(err, f.Truncate(int64(a.buf.Len())), f.Truncate(a.size), f.Close())
	return err
}

func (a *archive) abandon() error { return nil }

var _ set = (*archive)(nil)

// behind names the file that says that the guest may have less than the disk.
func behind(disk string) string { return disk + ".behind" }

// signalBehind tells [KeepUp] that a guest is behind.
const signalBehind = syscall.SIGUSR1

// tellFirst tells the companion's first process, which waits for the guest.
// Elsewhere than in a container the first process is somebody else.
func tellFirst() error {
	line, err := os.ReadFile("/proc/1/cmdline")
	if err != nil || !bytes.HasPrefix(line, []byte(os.Args[0]+"\x00")) {
		return err
	}
	return syscall.Kill(1, signalBehind)
}

// liveScript is what a guest does with the archive on its input.
const liveScript = `set -e; at=/run/nomad-kubelet/live.$$; trap 'rm -rf "$at"' EXIT; (umask 077; mkdir -p "$at"); tar -xmf - -C "$at"; sh "$at/apply" "$at" live`

const (
	// patience is how long a guest may take to answer while somebody waits.
	patience = 3 * time.Second
	// handing is how long one may take over its files, less than a pass of the pods
	// room, which waits for it.
	handing = 30 * time.Second
)

// deliver hands the archive to the guest that runs, if it may be behind. A VM that
// does not run will read it. The caller has the disk's lock. The error is
// errSilent for a guest that does not answer, or comes to no end.
func deliver(ctx context.Context, disk, socket string) error {
	if _, err := os.Stat(behind(disk)); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handing)
	defer cancel()
	a := agent{socket: socket}
	if err := a.ping(ctx, patience); err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
			return os.Remove(behind(disk)) // no VM runs
		}
		return err
	}
	data, err := os.ReadFile(disk)
	if err != nil {
		return err
	}
	used, err := archiveLength(data)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	code, err := GuestCommand(ctx, socket, []string{"sh", "-c", liveScript}, nil, data[:used], io.Discard, &said)
	switch {
	case ctx.Err() != nil:
		return errSilent
	case err != nil:
		return err
	case code != 0:
		return fmt.Errorf("the guest has not taken its files: %s", strings.TrimSpace(said.String()))
	}
	return os.Remove(behind(disk))
}

// archiveLength is how much of a disk its archive takes.
func archiveLength(disk []byte) (int, error) {
	left := bytes.NewReader(disk)
	for r := tar.NewReader(left); ; {
		switch _, err := r.Next(); {
		case errors.Is(err, io.EOF):
			return len(disk) - left.Len(), nil
		case err != nil:
			return 0, fmt.Errorf("read the archive for the VM's guest: %w", err)
		}
	}
}

// KeepUp hands a VM's archive to its guest when that was not there to take it, now
// and whenever told is, until ctx ends. The pause between two tries grows from
// keepFirst to keepLast.
func KeepUp(ctx context.Context, told <-chan os.Signal, disk, socket string) {
	pause := keepLast
	for {
		if keep(ctx, disk, socket) {
			pause = keepLast
		}
		select {
		case <-ctx.Done():
			return
		case <-told:
			pause = keepFirst
		case <-wait(behind(disk), pause):
			pause = min(2*pause, keepLast)
		}
	}
}

const (
	keepFirst = time.Second
	keepLast  = time.Minute
)

// wait is for nothing where no guest is behind.
func wait(mark string, pause time.Duration) <-chan time.Time {
	if _, err := os.Stat(mark); err != nil {
		return nil
	}
	return time.After(pause)
}

// keep is one try; done says that the guest has all.
func keep(ctx context.Context, disk, socket string) (done bool) {
	lock, err := exclusive(ctx, disk)
	if err != nil {
		return false
	}
	defer lock.Close()
	return deliver(ctx, disk, socket) == nil
}
