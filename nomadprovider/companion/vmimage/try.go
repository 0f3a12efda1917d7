package vmimage

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// What is in the directory of an allocation that its tasks share.
const (
	// Base is the image, or a link to it.
	Base = "base"
	// Program is this program, for the container of an image that carries a disk.
	Program = "companion"
	// failures counts the tries that have failed.
	failures = "failures"
)

// Try makes a try of a task that Nomad starts again until it has ended well, after
// the kubelet's back-off of image pulls (10 s doubling to 300 s) since the last one
// failed. What is wrong is written to the file message, too, as a container's last
// words are.
func Try(ctx context.Context, dir, message string, work func(context.Context) error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	count := filepath.Join(dir, failures)
	was := failed(count)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(was.At.Add(was.backoff()))):
	}
	err := work(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	now, e := json.Marshal(failure{Tries: was.Tries + 1, At: time.Now()})
	return errors.Join(err, e, os.WriteFile(count, now, 0o600),
		os.MkdirAll(filepath.Dir(message), 0o755), os.WriteFile(message, []byte(err.Error()), 0o644))
}

// failure is the last of some tries.
type failure struct {
	Tries int       `json:"tries"`
	At    time.Time `json:"at"`
}

func failed(path string) (f failure) {
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &f) != nil {
		return failure{}
	}
	return f
}

// The kubelet's back-off (pkg/kubelet/kubelet.go, imageBackOffPeriod and
// MaxImageBackOff).
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 300 * time.Second
)

func (f failure) backoff() time.Duration {
	if f.Tries == 0 {
		return 0
	}
	d := backoffFirst
	for i := 1; i < f.Tries && d < backoffMax; i++ {
		d *= 2
	}
	return min(d, backoffMax)
}

// Point leaves a link to an image in a directory.
func Point(dir, image string) error {
	next := filepath.Join(dir, Base+".new")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(image, next); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(dir, Base))
}

// PutProgram leaves a copy of the program that runs in a directory.
func PutProgram(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, "partial-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // after the rename there is none
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), filepath.Join(dir, Program))
}
