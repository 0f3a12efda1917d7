package dockerproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// subPaths refuses a container whose sub-paths lead out of their volumes. A pod
// may put a symbolic link into its volume, which the engine would follow as the
// client's root. The kubelet holds the way open while it mounts it
// (pkg/volume/util/subpath); here one who changes it between this look and the
// engine's, some milliseconds later, is not seen.
func (c *request) subPaths() error {
	text := c.Labels[LabelSubPaths]
	if text == "" {
		return nil
	}
	depths := map[string]int{}
	if err := json.Unmarshal([]byte(text), &depths); err != nil {
		return fmt.Errorf("read label %s: %w", LabelSubPaths, err)
	}
	sources := map[string]string{}
	for _, bind := range c.HostConfig.Binds {
		from, to, _ := strings.Cut(bind, ":")
		to, _, _ = strings.Cut(to, ":")
		sources[to] = from
	}
	for _, m := range c.HostConfig.Mounts {
		sources[m.Target] = m.Source
	}
	for target, depth := range depths {
		source, ok := sources[target]
		if !ok || depth < 1 {
			return fmt.Errorf("failed to prepare subPath for the mount at %s: it is not known", target)
		}
		volume := source
		for range depth {
			volume = filepath.Dir(volume)
		}
		if err := confined(volume, source); err != nil {
			return fmt.Errorf("failed to prepare subPath for the mount at %s: %w", target, err)
		}
	}
	return nil
}

// confined makes sure that a path below a directory leads to something below it, or
// to nothing yet, which the engine then makes there.
func confined(dir, path string) error {
	root, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is all to be made
	} else if err != nil {
		return err
	}
	for at := path; at != dir; at = filepath.Dir(at) {
		real, err := filepath.EvalSymlinks(at)
		if err == nil {
			if real != root && !strings.HasPrefix(real, root+string(filepath.Separator)) {
				return errors.New("it leads out of its volume by a symbolic link")
			}
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Lstat(at); err == nil {
			return errors.New("it leads nowhere by a symbolic link")
		}
	}
	return nil
}
