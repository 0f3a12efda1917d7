package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// marks is a directory of this machine in which containers leave files, whose
// times tell when: the clock is the benchmark's own. They are the kernel's
// coarse time, good to one of its ticks (1 to 10 ms).
type marks string

// marks makes one that ends with the benchmark.
func (h *hybrid) marks(b *testing.B) marks {
	b.Helper()
	dir, err := os.MkdirTemp(h.marksDir, "")
	must(b, err)
	b.Cleanup(func() { must(b, os.RemoveAll(dir)) })
	return marks(dir)
}

// mount shows the directory to the pod's first container as /marks.
func (m marks) mount(p *corev1.Pod) {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "marks", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: string(m)},
	}})
	c := &p.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "marks", MountPath: "/marks"})
}

func (m marks) put(name string) error {
	return os.WriteFile(filepath.Join(string(m), name), nil, 0o644)
}

// times are those of all marks, by name.
func (m marks) times() (map[string]time.Time, error) {
	entries, err := os.ReadDir(string(m))
	if err != nil {
		return nil, err
	}
	out := make(map[string]time.Time, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		out[e.Name()] = info.ModTime()
	}
	return out, nil
}

// await returns the times once all of these marks are there.
func (m marks) await(ctx context.Context, limit time.Duration, names []string) (map[string]time.Time, error) {
	var out map[string]time.Time
	err := poll(ctx, limit, func(context.Context) (err error) {
		if out, err = m.times(); err != nil {
			return err
		}
		for _, n := range names {
			if out[n].IsZero() {
				return fmt.Errorf("mark %s is not there", n)
			}
		}
		return nil
	})
	return out, err
}
