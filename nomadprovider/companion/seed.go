package companion

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	diskfile "github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"sigs.k8s.io/yaml"
)

// seed is the disk with cloud-init's files while it is made.
type seed struct {
	disk, label string
	work        string
	// there says that the disk is, and files are not wanted.
	there bool
}

func newSeed(e Entry) (set, error) {
	s := &seed{disk: e.Disk, label: e.Label}
	if _, err := os.Lstat(e.Disk); err == nil {
		s.there = true
		return s, nil
	}
	var err error
	if s.work, err = os.MkdirTemp(filepath.Dir(e.Disk), tempStyle); err == nil {
		err = os.WriteFile(filepath.Join(s.work, "vendor-data"), guestBoot, 0o600)
	}
	return s, err
}

// add takes a file of cloud-init's that cloud-init will understand.
func (s *seed) add(e Entry) error {
	if s.there {
		return nil
	}
	if filepath.Base(e.File) != e.File {
		return fmt.Errorf("file %q lies outside its disk", e.File)
	}
	if err := understood(e.File, e.Data); err != nil {
		return fmt.Errorf("cloud-init's %s: %w", e.File, err)
	}
	return os.WriteFile(filepath.Join(s.work, e.File), e.Data, 0o600)
}

// commit writes the disk.
func (s *seed) commit() (err error) {
	if s.there {
		return nil
	}
	defer func() { err = errors.Join(err, s.abandon()) }()
	// Not in the working directory, all of whose files go onto the disk.
	temp := s.work + ".iso"
	defer os.Remove(temp) // after the rename there is none
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const block = 2048
	iso, err := iso9660.Create(diskfile.New(f, false), 0, 0, block, s.work)
	if err != nil {
		return fmt.Errorf("make the disk for cloud-init: %w", err)
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: s.label}); err != nil {
		return fmt.Errorf("make the disk for cloud-init: %w", err)
	}
	return os.Rename(temp, s.disk)
}

func (s *seed) abandon() error {
	if s.there {
		return nil
	}
	return os.RemoveAll(s.work)
}

var _ set = (*seed)(nil)

// beginnings of user-data that cloud-init knows
// (cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP).
var beginnings = []string{
	"#!", "#include", "#include-once", "#cloud-config-archive", "#cloud-config-jsonp", "#cloud-boothook", "#part-handler",
	"## template: jinja", "content-type:", "mime-version:", "\x1f\x8b",
}

// understood says what cloud-init would not make of a file. It would go on
// without it, and the guest be left without a user, or a network.
func understood(name string, data []byte) error {
	const config = "#cloud-config"
	if name == "user-data" {
		first, _, _ := bytes.Cut(data, []byte("\n"))
		line := strings.ToLower(strings.TrimSpace(string(first)))
		if line != config {
			for _, b := range beginnings {
				if strings.HasPrefix(line, b) {
					return nil
				}
			}
			return fmt.Errorf("its first line is not %q or another that cloud-init knows", config)
		}
	}
	var m map[string]any
	if err := yaml.Unmarshal(data, &m); err != nil {
		return errors.New("is no YAML of keys and values" + where(err))
	}
	return nil
}

// where is the place of a mistake, without what stands there: it may be secret.
func where(err error) string {
	if _, rest, ok := strings.Cut(err.Error(), "line "); ok {
		n, _, _ := strings.Cut(rest, ":")
		if len(n) < 8 && strings.Trim(n, "0123456789") == "" {
			return ": see line " + n
		}
	}
	return ""
}
