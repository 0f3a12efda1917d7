package peers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// State is what a node needs to carry on without Consul.
type State struct {
	Fabric   string                    `json:"fabric"`
	Settings fabric.Settings           `json:"settings"`
	ID       fabric.ID                 `json:"id"`
	Own      fabric.Node               `json:"own"`
	Peers    map[fabric.ID]fabric.Node `json:"peers"`
}

// Equal compares all fields.
func (s *State) Equal(o State) bool { return reflect.DeepEqual(*s, o) }

// ErrForeign says that the file is another node's or another fabric's.
var ErrForeign = errors.New("is of another node or fabric")

// LastID is whose the file is; empty if there is none, or none that can be read.
func LastID(file string) fabric.ID {
	s, err := read(file)
	if err != nil || s == nil {
		return ""
	}
	return s.ID
}

func read(file string) (*State, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the peers file: %w", err)
	}
	s := &State{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("peers file %s: %w", file, err)
	}
	return s, nil
}

// Load reads the file; nil without an error if there is none.
func Load(file, fabricName string, id fabric.ID) (*State, error) {
	s, err := read(file)
	if err != nil || s == nil {
		return nil, err
	}
	if s.Fabric != fabricName || s.ID != id {
		return nil, fmt.Errorf("peers file %s %w: %s of %q", file, ErrForeign, s.ID, s.Fabric)
	}
	if err := s.Settings.Validate(); err != nil {
		return nil, fmt.Errorf("peers file %s: %w", file, err)
	}
	return s, nil
}

// Save replaces the file as a whole: after a crash or a power cut there is the
// old one or the new one.
func (s *State) Save(file string) error {
	data, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write the peers file: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".peers-*")
	if err != nil {
		return fmt.Errorf("write the peers file: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write the peers file %s: %w", file, err)
	}
	return nil
}
