package devcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Cluster is a local hybrid, running or not.
type Cluster struct {
	// Ports are where the components listen.
	Ports Ports

	opts Options
	// dockerHost is the engine in use, as a URL.
	dockerHost string

	mu       sync.Mutex // guards children and opts.Out
	children map[string]*child
}

// state is what a later program has to know.
type state struct {
	Options    Options `json:"options"`
	DockerHost string  `json:"dockerHost,omitempty"`
}

func newCluster(opts Options) *Cluster {
	return &Cluster{opts: opts, Ports: portsFrom(opts.PortBase), children: map[string]*child{}}
}

// Open finds the cluster that an earlier program started in dir. The error is
// [os.ErrNotExist] if there is none.
func Open(dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("state of the cluster in %s: %w", dir, err)
	}
	s.Options.Dir = dir
	c := newCluster(s.Options)
	c.dockerHost = s.DockerHost
	return c, nil
}

func (c *Cluster) save() error {
	data, err := json.MarshalIndent(state{Options: c.opts, DockerHost: c.dockerHost}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.opts.Dir, "state.json"), data, 0o600)
}

// Dir is the state directory.
func (c *Cluster) Dir() string { return c.opts.Dir }

// ClusterID is part of the ID of every job in Nomad.
func (c *Cluster) ClusterID() string { return c.opts.ClusterID }

// KubeconfigFile is the administrator's.
func (c *Cluster) KubeconfigFile() string { return filepath.Join(c.opts.Dir, "kubeconfig") }

// ConfigFile is nomad-kubelet's configuration.
func (c *Cluster) ConfigFile() string { return filepath.Join(c.opts.Dir, "nomad-kubelet.yaml") }

// NomadAddress is where Nomad's HTTP API answers.
func (c *Cluster) NomadAddress() string {
	if c.opts.NomadAddress != "" {
		return c.opts.NomadAddress
	}
	return fmt.Sprintf("http://127.0.0.1:%d", c.Ports.NomadHTTP)
}

// DockerHost is the Docker engine in use, as a URL; empty when there is none.
func (c *Cluster) DockerHost() string { return c.dockerHost }

// ownKubernetes and ownNomad tell whether we start that side ourselves.
func (c *Cluster) ownKubernetes() bool { return c.opts.Kubeconfig == "" }
func (c *Cluster) ownNomad() bool      { return c.opts.NomadAddress == "" && !c.opts.NoNomad }

// Up starts what does not run yet and returns when all of it is ready. When it
// fails, what has started is left for inspection; [Cluster.Down] clears it.
func Up(ctx context.Context, opts Options) (*Cluster, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("this needs root: Nomad makes network namespaces and mounts for pods. Run it with sudo")
	}
	if opts.NomadAddress == "" || opts.OnPremNode {
		if err := Prerequisites(ctx, opts, false, io.Discard); err != nil {
			return nil, err
		}
	}
	c := newCluster(opts)
	if old, err := Open(opts.Dir); err == nil && old.anyRunning() {
		if old.opts.PortBase != opts.PortBase || old.opts.Kubeconfig != opts.Kubeconfig || old.opts.ACL != opts.ACL || old.opts.SplitNomad != opts.SplitNomad {
			return nil, fmt.Errorf("a cluster with other settings runs in %s: stop it first (nomad-kubelet dev down)", opts.Dir)
		}
		c.dockerHost = old.dockerHost
	}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	if err := c.checkPrograms(); err != nil {
		return nil, err
	}
	if err := c.checkPorts(ctx); err != nil {
		return nil, err
	}
	if opts.PodNetwork {
		if err := c.startRecord(ctx); err != nil {
			return c, err
		}
	}
	if opts.NoNomad {
		return c, c.startKubernetes(ctx)
	}
	if c.ownKubernetes() {
		if err := c.makePodBridge(ctx); err != nil {
			return c, err
		}
	}
	// The two sides know nothing of each other until nomad-kubelet joins them.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startKubernetes(gctx) })
	g.Go(func() error { return c.startNomadSide(gctx) })
	if err := g.Wait(); err != nil {
		return c, err
	}
	if opts.PodNetwork {
		if err := c.joinNomad(ctx); err != nil {
			return c, err
		}
	}
	if err := c.writeProviderConfig(); err != nil {
		return c, err
	}
	if c.opts.NoNomadKubelet {
		return c, nil
	}
	return c, c.Start(ctx, NomadKubelet)
}

func (c *Cluster) prepare() error {
	for _, dir := range []string{"run", "logs", "pki"} {
		if err := os.MkdirAll(filepath.Join(c.opts.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.opts.CacheDir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(c.opts.shortDir(), 0o755); err != nil {
		return err
	}
	return c.save()
}

// step runs one part of the start and tells how long it took.
func (c *Cluster) step(name string, f func() (string, error)) error {
	start := time.Now()
	detail, err := f()
	if err != nil {
		return err
	}
	c.say("  %-24s %-34s %5.1f s", name, detail, time.Since(start).Seconds())
	return nil
}

func (c *Cluster) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opts.Out != nil {
		fmt.Fprintf(c.opts.Out, format+"\n", args...)
	}
}

func (c *Cluster) startKubernetes(ctx context.Context) error {
	if !c.ownKubernetes() {
		if err := copyFile(c.opts.Kubeconfig, c.KubeconfigFile(), 0o600); err != nil {
			return err
		}
		return c.step("existing cluster", func() (string, error) { return "objects applied", c.applyObjects(ctx) })
	}
	if err := c.writeIdentities(); err != nil {
		return err
	}
	for _, name := range []string{Etcd, APIServer} {
		if err := c.Start(ctx, name); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Start(gctx, ControllerManager) })
	g.Go(func() error { return c.Start(gctx, Scheduler) })
	g.Go(func() error { return c.applyObjects(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	return c.startOnPremNode(ctx)
}

func (c *Cluster) startNomadSide(ctx context.Context) error {
	if !c.ownNomad() {
		return nil
	}
	if !c.opts.NoDocker {
		if err := c.startDocker(ctx); err != nil {
			return err
		}
		if c.proxied() {
			if err := c.Start(ctx, DockerProxy); err != nil {
				return err
			}
		}
		if err := c.prepareImages(ctx); err != nil {
			return err
		}
	}
	if c.opts.VMImage {
		if err := c.installVMImage(ctx); err != nil {
			return err
		}
	}
	if err := c.seedNomad(ctx); err != nil {
		return err
	}
	if err := c.startNomad(ctx); err != nil {
		return err
	}
	if c.opts.ACL {
		return c.step("Nomad ACL", func() (string, error) { return "policy and token", c.bootstrapACL(ctx) })
	}
	return nil
}
