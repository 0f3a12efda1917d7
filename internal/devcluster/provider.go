package devcluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// VirtualNode is the name of the Node that nomad-kubelet registers.
const VirtualNode = config.DefaultVirtualNode

func (c *Cluster) providerKubeconfig() string {
	if !c.ownKubernetes() {
		return c.KubeconfigFile()
	}
	return c.pki().path("nomad-kubelet.kubeconfig")
}

// ImageCache is where the cluster keeps VM images that pods fetch.
func (c *Cluster) ImageCache() string { return filepath.Join(c.opts.Dir, "images") }

// Config is nomad-kubelet's configuration for this cluster.
func (c *Cluster) Config() *config.Config {
	node := config.VirtualNode{
		Name:       VirtualNode,
		HostAccess: translate.HostAccess{ImagePaths: []string{VMImageDir}, ImageCache: c.ImageCache()},
	}
	if image, err := c.companionImage(); err == nil && !c.opts.NoDocker {
		node.CompanionImage = image
	}
	if c.opts.MockRuntime {
		node.Runtimes = map[string]translate.Runtime{
			"nomad-mock": {Driver: "mock_driver", NoNetwork: true, NoLogs: true, Config: map[string]any{"run_for": "8760h"}},
		}
	}
	if c.opts.PodNetwork {
		node.Network, node.ClusterDNS = translate.NetworkNetbridge, []string{nodeLocalDNS, clusterDNS}
	}
	cfg := &config.Config{
		Cluster:      c.opts.ClusterID,
		Kubeconfig:   c.providerKubeconfig(),
		Nomad:        config.Nomad{Address: c.NomadAddress(), TokenFile: c.NomadTokenFile()},
		Kubelet:      config.Kubelet{Port: c.Ports.Kubelet},
		VirtualNodes: []config.VirtualNode{node},
	}
	if c.ownKubernetes() {
		cfg.Kubelet.Address, cfg.Kubelet.NodeIP = c.nodeIP(), c.nodeIP()
	}
	return cfg
}

func (c *Cluster) writeProviderConfig() error {
	cfg := c.Config()
	if c.opts.Configure != nil {
		c.opts.Configure(cfg)
	}
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return err
	}
	return os.WriteFile(c.ConfigFile(), data, 0o644)
}

func (c *Cluster) providerCommand() (command, error) {
	path := c.opts.NomadKubelet
	if path == "" {
		var err error
		if path, err = os.Executable(); err != nil {
			return command{}, err
		}
		if inBin := filepath.Join(c.opts.BinDir, "nomad-kubelet"); c.opts.BinDir != "" && exists(inBin) {
			path = inBin
		}
	}
	return command{path: path, args: []string{"run", "--config", c.ConfigFile()}}, nil
}

// providerReady waits until every virtual node of the configuration is Ready.
func (c *Cluster) providerReady(ctx context.Context) error {
	cfg, err := config.Load(c.ConfigFile())
	if err != nil {
		return err
	}
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	for _, n := range cfg.VirtualNodes {
		node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !nodeReady(node) {
			return fmt.Errorf("node %s is not Ready", n.Name)
		}
	}
	return nil
}

func nodeReady(node *corev1.Node) bool {
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}
