package companion

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/vmnet"
)

// Entry is one line of what [WriteFiles] reads. Exactly one of Guest, Dir, Volume,
// Disk, File and End is set; files belong to the volume or disk before them.
type Entry struct {
	// Guest is the MAC of a VM's guest that is to have the pod's address.
	Guest string `json:"guest,omitempty"`
	// Dir is a directory to be there, with this owner and mode. What it holds is
	// left alone, and so is a kept one that is there, but for its group if one is given.
	Dir  string `json:"dir,omitempty"`
	Kept bool   `json:"kept,omitempty"`
	// Volume is a directory whose files all change at once.
	Volume string `json:"volume,omitempty"`
	// Disk is a VM's disk to be there. One that is there is left alone, but for an
	// archive.
	Disk string `json:"disk,omitempty"`
	// Base is the image that the disk begins as, Backing how qemu names it, and Image
	// the user; SizeMB is the disk's size, 0 for the image's.
	Base    string `json:"base,omitempty"`
	Image   string `json:"image,omitempty"`
	Backing string `json:"backing,omitempty"`
	SizeMB  int64  `json:"sizeMB,omitempty"`
	// Raw is set for a disk without a format, which is kept when the VM's pod goes;
	// one that is ReadOnly has to be there.
	Raw      bool `json:"raw,omitempty"`
	ReadOnly bool `json:"readOnly,omitempty"`
	// Label is given for a disk that holds files (ISO 9660), by this name.
	Label string `json:"label,omitempty"`
	// Archive is set for a disk that is an archive (tar) of files and Program, for
	// the guest whose agent is on the socket Agent. It changes with them.
	Archive bool     `json:"archive,omitempty"`
	Agent   string   `json:"agent,omitempty"`
	Program *Program `json:"program,omitempty"`
	// File is a path within the volume or disk, and Data its content.
	File string `json:"file,omitempty"`
	Data []byte `json:"data,omitempty"`
	Mode uint32 `json:"mode,omitempty"` // permission bits, and 02000 for setgid
	GID  int    `json:"gid,omitempty"`
	// End says that nothing was lost on the way.
	End bool `json:"end,omitempty"`
}

// LastWords is where a task of ours says why it has failed, as Kubernetes'
// containers do.
const LastWords = "/local/.k8s/term"

// Answers of the commands that are run beside the companion.
const (
	AnswerDone   = "done"
	AnswerFailed = "failed: "
)

// set is what files are put into, and then is there as a whole or not at all.
type set interface {
	add(Entry) error
	commit() error
	abandon() error
}

// WriteFiles reads entries, one JSON object a line, and brings directories,
// volumes and disks to that state. Each volume changes at once, and only if it
// differs.
func WriteFiles(r io.Reader) error {
	dec := json.NewDecoder(bufio.NewReader(r))
	var open set
	for {
		var e Entry
		err := dec.Decode(&e)
		if err != nil {
			err = fmt.Errorf("the list of files broke off: %w", err)
		}
		switch {
		case err != nil:
		case e.File != "" && open != nil:
			err = open.add(e)
		default:
			if open != nil {
				done := open
				open = nil
				err = done.commit()
			}
			if e.End || err != nil {
				return err
			}
			open, err = start(e)
		}
		if err != nil && open != nil {
			err = errors.Join(err, open.abandon())
		}
		if err != nil {
			return err
		}
	}
}

// start makes what an entry names; nil if no files are to follow.
func start(e Entry) (set, error) {
	switch {
	case e.Guest != "":
		return nil, hand(e.Guest)
	case e.Dir != "":
		return nil, makeDir(e)
	case e.Volume != "":
		return newVolume(e.Volume, e.GID)
	case e.Disk != "" && e.Archive:
		return newArchive(e), nil
	case e.Disk != "" && e.Label != "":
		return newSeed(e)
	case e.Disk != "" && e.Raw:
		return nil, keepDisk(e)
	case e.Disk != "":
		return nil, makeDisk(e)
	}
	return nil, errors.New("an entry is neither guest, directory, volume, disk nor a file of one")
}

// hand gives a guest the pod's address. The VM waits for it as for its disks.
func hand(guest string) error {
	mac, err := net.ParseMAC(guest)
	if err == nil {
		err = vmnet.Hand(mac)
	}
	if err != nil {
		return fmt.Errorf("give the guest the pod's address: %w", err)
	}
	return nil
}

func makeDir(e Entry) error {
	if info, err := os.Lstat(e.Dir); err == nil && e.Kept {
		return share(e, info)
	}
	if err := os.MkdirAll(e.Dir, 0o755); err != nil {
		return err
	}
	return own(e.Dir, e.Mode, e.GID)
}

// share gives a directory that is there to a group, as the kubelet does with a
// volume's (pkg/volume/volume_linux.go): its mode becomes no less. What is no
// directory was put there by a container, and is its affair.
func share(e Entry, info fs.FileInfo) error {
	if e.GID == 0 || !info.IsDir() {
		return nil
	}
	if err := os.Lchown(e.Dir, -1, e.GID); err != nil {
		return err
	}
	return os.Chmod(e.Dir, info.Mode().Perm()|0o070|fs.ModeSetgid)
}

// own sets the group and then the mode: a change of group clears the set-gid bit.
func own(path string, mode uint32, gid int) error {
	if err := os.Chown(path, 0, gid); err != nil && os.Geteuid() == 0 {
		return err
	}
	m := fs.FileMode(mode & 0o777)
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	return os.Chmod(path, m)
}

// The layout of the kubelet's atomic volumes (pkg/volume/util/atomic_writer.go):
// a directory for each version, ..data pointing to the current one, and a
// symbolic link through it for each name that users see.
const (
	dataLink  = "..data"
	nextLink  = "..data_tmp"
	hidden    = ".."
	tempStyle = "..*"
)

// volume is one version under construction.
type volume struct {
	dir, next string
	gid       int
	// names are the top-level names that users see.
	names map[string]bool
	same  bool // as the current version, so far
	files int
}

func newVolume(dir string, gid int) (set, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := own(dir, 0o755, gid); err != nil {
		return nil, err
	}
	next, err := os.MkdirTemp(dir, tempStyle)
	if err != nil {
		return nil, err
	}
	v := &volume{dir: dir, next: next, gid: gid, names: map[string]bool{}, same: true}
	return v, own(next, 0o755, gid)
}

func (v *volume) add(e Entry) error {
	if !filepath.IsLocal(e.File) {
		return fmt.Errorf("file %q lies outside its volume", e.File)
	}
	v.files++
	path := filepath.Join(v.next, e.File)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, e.Data, 0o600); err != nil {
		return err
	}
	if err := own(path, e.Mode, v.gid); err != nil {
		return err
	}
	top := e.File
	for d := filepath.Dir(top); d != "."; d = filepath.Dir(top) {
		top = d
	}
	v.names[top] = true
	v.same = v.same && sameFile(filepath.Join(v.dir, dataLink, e.File), e)
	return nil
}

// sameFile compares with a file of the current version.
func sameFile(path string, e Entry) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || uint32(info.Mode().Perm()) != e.Mode&0o777 || info.Size() != int64(len(e.Data)) {
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && string(have) == string(e.Data)
}

// commit puts the new version in the place of the current one.
func (v *volume) commit() error {
	current, err := os.Readlink(filepath.Join(v.dir, dataLink))
	if err == nil && v.same && countFiles(filepath.Join(v.dir, current)) == v.files {
		return v.abandon()
	}
	link := filepath.Join(v.dir, nextLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(v.next), link); err != nil {
		return err
	}
	if err := os.Rename(link, filepath.Join(v.dir, dataLink)); err != nil {
		return err
	}
	return v.tidy()
}

func countFiles(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { // what cannot be read is not the same
		if err == nil && !d.IsDir() {
			n++
		}
		return nil
	})
	return n
}

// tidy makes the links that users see, and removes those of names that are
// gone, and older versions.
func (v *volume) tidy() error {
	for name := range v.names {
		link := filepath.Join(v.dir, name)
		want := filepath.Join(dataLink, name)
		if have, err := os.Readlink(link); err == nil && have == want {
			continue
		}
		// A link in the place of what was there, at once.
		temp := filepath.Join(v.dir, nextLink)
		if err := os.Symlink(want, temp); err != nil {
			return err
		}
		if err := os.Rename(temp, link); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == dataLink || name == filepath.Base(v.next) || v.names[name] {
			continue
		}
		if len(name) < len(hidden) || name[:len(hidden)] != hidden {
			if e.Type()&fs.ModeSymlink == 0 {
				continue // not ours
			}
		}
		if err := os.RemoveAll(filepath.Join(v.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// abandon drops a version that is not wanted.
func (v *volume) abandon() error { return os.RemoveAll(v.next) }
