package devcluster

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Images that the examples, and Nomad's bridge networking, need.
const busyboxImage = "busybox:1.36"

func pauseImage() string { return "registry.k8s.io/pause-" + runtime.GOARCH + ":3.3" }

// pullTimeout is long enough for these small images, and short for a machine
// that silently drops packets to the registry.
const pullTimeout = 20 * time.Second

// prepareImages sees to it that every image is in the engine: as it is, from
// its registry, or as a stand-in made of Debian's static busybox.
func (c *Cluster) prepareImages(ctx context.Context) error {
	images := []string{busyboxImage, pauseImage()}
	if err := c.prepareCompanion(ctx); err != nil {
		return err
	}
	how := make([]string, len(images))
	errs := make([]error, len(images))
	return c.step("images", func() (string, error) {
		var wg sync.WaitGroup
		for i, name := range images {
			wg.Go(func() { how[i], errs[i] = c.prepareImage(ctx, name) })
		}
		wg.Wait()
		var notes []string
		for i, name := range images {
			if errs[i] != nil {
				return "", fmt.Errorf("image %s: %w", name, errs[i])
			}
			if how[i] != "present" {
				notes = append(notes, fmt.Sprintf("    %s: %s", name, how[i]))
			}
		}
		if len(notes) == 0 {
			return "present", nil
		}
		c.say("%s", strings.Join(notes, "\n"))
		return "", nil
	})
}

func (c *Cluster) prepareImage(ctx context.Context, name string) (string, error) {
	e := c.engine()
	if e.hasImage(ctx, name) {
		return "present", nil
	}
	pullCtx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	pullErr := e.pull(pullCtx, name)
	if pullErr == nil && e.hasImage(ctx, name) {
		return "pulled", nil
	}
	rootfs, err := busyboxRootfs(name == pauseImage())
	if err != nil {
		return "", fmt.Errorf("cannot be pulled (%v), and no stand-in can be made: %w", pullErr, err)
	}
	change := `CMD ["sh"]`
	if name == pauseImage() {
		change = `ENTRYPOINT ["/pause"]`
	}
	if err := e.importImage(ctx, name, rootfs, change, "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return "", err
	}
	return "registry not reachable, made a stand-in of this machine's busybox", nil
}

// LoadImages puts the images of an archive, as `docker save` makes them, into
// every engine of the cluster: Nomad's Docker, the real node's containerd.
func (c *Cluster) LoadImages(ctx context.Context, archive string) error {
	if c.opts.OnPremNode {
		if err := c.ctr(ctx, "images", "import", archive); err != nil {
			return err
		}
	}
	if c.dockerHost == "" {
		return nil
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := c.engine().load(ctx, f); err != nil {
		return fmt.Errorf("load images of %s: %w", archive, err)
	}
	return nil
}

// ImportImage has an image of these files (tar) in Nomad's Docker.
func (c *Cluster) ImportImage(ctx context.Context, name string, files io.Reader) error {
	return c.engine().importImage(ctx, name, files)
}

// RemoveImage removes it.
func (c *Cluster) RemoveImage(ctx context.Context, name string) error {
	return c.engine().do(ctx, http.MethodDelete, "/images/"+name+"?force=1", nil, &[]any{})
}

// ImageLabel is the value of a label of an image in Nomad's Docker; empty when
// there is no such image.
func (c *Cluster) ImageLabel(ctx context.Context, image, label string) string {
	var out struct {
		Config struct{ Labels map[string]string }
	}
	if c.dockerHost == "" || c.engine().do(ctx, http.MethodGet, "/images/"+image+"/json", nil, &out) != nil {
		return ""
	}
	return out.Config.Labels[label]
}

// pauseScript keeps a pod's network namespace. As process 1 of a shared process
// namespace it inherits orphans, which the shell reaps while it waits.
const pauseScript = `#!/bin/sh
trap 'exit 0' TERM INT
while :; do sleep 86400 & wait $!; done
`

// StaticBusybox returns the path of a busybox that runs without libraries.
func StaticBusybox() (string, error) {
	for _, path := range []string{"/bin/busybox", lookPath("busybox")} {
		if path != "" && isStatic(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no static busybox: install the package busybox-static")
}

func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// busyboxRootfs is a root file system of one program under many names.
func busyboxRootfs(pause bool) (io.Reader, error) {
	path, err := StaticBusybox()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", path, err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var werr error
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil && werr == nil {
			werr = err
		}
		if _, err := io.WriteString(w, data); err != nil && werr == nil {
			werr = err
		}
	}
	for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var", "var/www"} {
		add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "")
	add(tar.Header{Name: "usr/bin", Typeflag: tar.TypeSymlink, Linkname: "../bin"}, "")
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
	add(tar.Header{Name: "etc/group", Mode: 0o644}, "root:x:0:\nnogroup:x:65534:\n")
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, string(program))
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeLink, Linkname: "bin/busybox", Mode: 0o755}, "")
		}
	}
	if pause {
		add(tar.Header{Name: "pause", Mode: 0o755}, pauseScript)
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &buf, werr
}
