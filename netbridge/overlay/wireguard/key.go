package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// LoadKey reads the node's private key, and makes one where there is no file. It
// may be called at once with itself: one file comes of it.
func LoadKey(file string) (wgtypes.Key, error) {
	key, err := readKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = wgtypes.GeneratePrivateKey(); err != nil {
		return key, fmt.Errorf("make a private key: %w", err)
	}
	if err := writeKey(file, key); err != nil {
		return key, fmt.Errorf("keep the private key: %w", err)
	}
	return readKey(file)
}

func readKey(file string) (wgtypes.Key, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("read the private key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		// The error must not tell the key.
		return key, fmt.Errorf("%s holds no WireGuard key: remove it, and a new one is made", file)
	}
	return key, nil
}

// writeKey never replaces a file, and a crash leaves a whole one or none.
func writeKey(file string, key wgtypes.Key) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".key-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(key.String() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Nor may its name be lost: what is published next is the key that all others pin.
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
