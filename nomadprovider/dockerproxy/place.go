package dockerproxy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/logindex"
)

// place is where a task's log and its index are.
type place struct {
	dir  string // the task's own, of which its container sees only parts
	logs string
	task string
}

// placeOf finds the directory of the task whose container has these binds: that
// of what the driver binds to /local. Containers of others have none.
func placeOf(binds []string) (p place, ok bool) {
	for _, bind := range binds {
		from, to, _ := strings.Cut(bind, ":")
		if (to == "/local" || strings.HasPrefix(to, "/local:")) && filepath.Base(from) == "local" {
			dir := filepath.Dir(from)
			return place{dir: dir, logs: filepath.Join(filepath.Dir(dir), "alloc", "logs"), task: filepath.Base(dir)}, true
		}
	}
	return place{}, false
}

// file is one of the task's log files (client/logmon/logging/rotator.go).
func (p place) file(k logindex.Kind, number int64) string {
	return filepath.Join(p.logs, p.series(k)+strconv.FormatInt(number, 10))
}

func (p place) series(k logindex.Kind) string {
	if k == logindex.Stderr {
		return p.task + ".stderr."
	}
	return p.task + ".stdout."
}

// ends is where the next bytes of both streams go, while none are on their way.
func (p place) ends() (at [2]logindex.Position) {
	entries, _ := os.ReadDir(p.logs) // there may be none yet
	for k := range at {
		for _, e := range entries {
			rest, ok := strings.CutPrefix(e.Name(), p.series(logindex.Kind(k)))
			if n, err := strconv.ParseInt(rest, 10, 64); ok && err == nil && n >= at[k].File {
				at[k] = logindex.Position{File: n, At: size(filepath.Join(p.logs, e.Name()))}
			}
		}
	}
	return at
}

// segments are those of the task's index.
func (p place) segments() ([]logindex.Segment, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return logindex.Segments(names), nil
}

// size of a file, 0 for none. Containers write into the directory of the logs,
// too: what is no file is not looked into.
func size(path string) int64 {
	if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
		return fi.Size()
	}
	return 0
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
