package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// recipeLabel tells from which recipe an image was made.
const recipeLabel = "nomad-kubelet.io/recipe"

// image is one of the suite's, under the names of test/utils/image/manifest.go.
type image struct {
	names   []string
	bare    bool // without the Debian below it
	entries []entry
	config  v1.Config
}

const e2eImages = "registry.k8s.io/e2e-test-images/"

var searchPath = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// suiteImages are the images that the specs of sig-node, sig-storage,
// sig-apps and sig-network run; see each one's Dockerfile in Kubernetes' test/images.
func suiteImages(b *base, binDir, kubernetes string) ([]image, error) {
	bin := func(name string) string { return filepath.Join(binDir, name) }
	busybox, err := busyboxEntries(b, bin("shellenv"))
	if err != nil {
		return nil, err
	}
	porter := filepath.Join(kubernetes, "test", "images", "agnhost", "porter")
	return []image{
		{
			names: []string{e2eImages + "agnhost:2.59", e2eImages + "agnhost:2.55"},
			entries: []entry{
				{name: "agnhost", mode: 0o755, from: bin("agnhost")},
				{name: "agnhost-2", link: "agnhost"},
				{name: "uploads/", mode: 0o755},
				{name: "localhost.crt", mode: 0o644, from: filepath.Join(porter, "localhost.crt")},
				{name: "localhost.key", mode: 0o644, from: filepath.Join(porter, "localhost.key")},
				{name: "etc/passwd", mode: 0o644, text: b.passwd + "user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"},
				{name: "etc/group", mode: 0o644, text: b.group + "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"},
			},
			config: v1.Config{Env: searchPath, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}, "5000/tcp": {}}},
		},
		{names: []string{e2eImages + "busybox:1.37.0-1"}, entries: busybox, config: v1.Config{Env: searchPath, Cmd: []string{"sh"}}},
		{names: []string{e2eImages + "nonroot:1.4"}, entries: busybox, config: v1.Config{Env: searchPath, Cmd: []string{"sh"}, User: "1234"}},
		{
			names:   []string{e2eImages + "nonewprivs:1.3"},
			entries: []entry{{name: "usr/local/bin/nnp", mode: 0o6755, from: bin("nonewprivs")}},
			config:  v1.Config{Env: searchPath, Cmd: []string{"nnp"}},
		},
		{names: []string{e2eImages + "ipc-utils:1.3"}, config: v1.Config{Env: searchPath, Cmd: []string{"sh"}}},
		{names: []string{e2eImages + "jessie-dnsutils:1.7"}, config: v1.Config{Env: searchPath, Cmd: []string{"sh"}}},
		{names: []string{e2eImages + "perl:5.26"}, config: v1.Config{Env: searchPath, Cmd: []string{"perl"}}},
		{
			names: []string{e2eImages + "nginx:1.14-4", e2eImages + "nginx:1.15-4"},
			entries: []entry{
				{name: "var/log/nginx/access.log", link: "/dev/stdout"},
				{name: "var/log/nginx/error.log", link: "/dev/stderr"},
			},
			config: v1.Config{Env: searchPath, Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGTERM",
				ExposedPorts: map[string]struct{}{"80/tcp": {}}},
		},
		{
			// Nomad's bridge networking names the older one.
			names:   []string{"registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause-amd64:3.3"},
			bare:    true,
			entries: []entry{{name: "pause", mode: 0o755, from: bin("pause")}},
			config:  v1.Config{Env: searchPath, User: "65535:65535", Entrypoint: []string{"/pause"}},
		},
	}, nil
}

// busyboxEntries make Debian behave as busybox where specs can tell: the shell is
// busybox's, with its messages, and wget is one that works, Debian's.
func busyboxEntries(b *base, shellenv string) ([]entry, error) {
	static, err := devcluster.StaticBusybox()
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(static, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", static, err)
	}
	entries := []entry{
		{name: "usr/bin/sh", mode: 0o755, from: shellenv},
		{name: "usr/bin/env", link: "sh"},
		{name: "usr/bin/busybox", mode: 0o755, from: static},
	}
	for _, name := range strings.Fields(string(applets)) {
		if !b.programs[name] && name != "busybox" {
			entries = append(entries, entry{name: "usr/bin/" + name, link: "busybox"})
		}
	}
	return entries, nil
}

// archive is the images as `docker save` writes them.
type archive struct {
	file   string
	recipe string // identifies what it was made of
	probe  string // one of its images
}

// buildImages makes the archive, or finds it in dir as made before.
func buildImages(ctx context.Context, dir, binDir string, out io.Writer) (*archive, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	kubernetes, err := kubernetesSource(ctx, filepath.Join(binDir, "..", "tools", "kubernetes"))
	if err != nil {
		return nil, err
	}
	baseFile := filepath.Join(dir, fmt.Sprintf("base-%s.tar", digest(debianSuite, debianPackages, notInBase)))
	if err := makeBase(ctx, baseFile, out); err != nil {
		return nil, err
	}
	b, err := readBase(baseFile)
	if err != nil {
		return nil, err
	}
	images, err := suiteImages(b, binDir, kubernetes)
	if err != nil {
		return nil, err
	}
	recipe, err := recipeOf(images, baseFile)
	if err != nil {
		return nil, err
	}
	a := &archive{file: filepath.Join(dir, "images-"+recipe+".tar"), recipe: recipe, probe: images[0].names[0]}
	if _, err := os.Stat(a.file); err == nil {
		return a, nil
	}
	fmt.Fprintln(out, "Building the suite's images")
	old, _ := filepath.Glob(filepath.Join(dir, "images-*.tar"))
	for _, file := range old {
		os.Remove(file)
	}
	return a, writeArchive(a, images, baseFile)
}

func writeArchive(a *archive, images []image, baseFile string) error {
	below, err := layerFromFile(baseFile)
	if err != nil {
		return err
	}
	refs := map[name.Reference]v1.Image{}
	for _, i := range images {
		img, err := i.build(below, a.recipe)
		if err != nil {
			return fmt.Errorf("image %s: %w", i.names[0], err)
		}
		for _, n := range i.names {
			ref, err := name.NewTag(n)
			if err != nil {
				return err
			}
			refs[ref] = img
		}
	}
	if err := tarball.MultiRefWriteToFile(a.file+".part", refs); err != nil {
		return fmt.Errorf("write the suite's images: %w", err)
	}
	return os.Rename(a.file+".part", a.file)
}

func (i image) build(below v1.Layer, recipe string) (v1.Image, error) {
	var layers []v1.Layer
	if !i.bare {
		layers = append(layers, below)
	}
	if len(i.entries) > 0 {
		own, err := layerOf(i.entries)
		if err != nil {
			return nil, err
		}
		layers = append(layers, own)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config = i.config
	cfg.Config.Labels = map[string]string{recipeLabel: recipe}
	return mutate.ConfigFile(img, cfg)
}

// recipeOf is a digest of all that goes into the images.
func recipeOf(images []image, baseFile string) (string, error) {
	parts := []any{filepath.Base(baseFile)}
	for _, i := range images {
		parts = append(parts, i.names, i.bare, i.config)
		for _, e := range i.entries {
			parts = append(parts, e.name, e.mode, e.text, e.link)
			if e.from == "" {
				continue
			}
			data, err := os.ReadFile(e.from)
			if err != nil {
				return "", fmt.Errorf("image %s: %w", i.names[0], err)
			}
			parts = append(parts, sha256.Sum256(data))
		}
	}
	return digest(parts...), nil
}

func digest(parts ...any) string {
	data, err := json.Marshal(parts)
	if err != nil {
		panic(err) // strings, numbers and slices of them only
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))[:12]
}

// kubernetesSource is where the module k8s.io/kubernetes lies.
func kubernetesSource(ctx context.Context, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = module
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the source of Kubernetes: go list in %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}
