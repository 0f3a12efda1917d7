package devcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

// OnPremNode is the name of the Node of a real kubelet; see [Options.OnPremNode].
const OnPremNode = "on-prem"

// onPremDir holds what containerd and the kubelet write. It is short, for they
// make sockets deep below it.
func (c *Cluster) onPremDir(elem ...string) string {
	return filepath.Join(append([]string{c.opts.shortDir(), "on-prem"}, elem...)...)
}

// onPremBridge carries the real node's pods, and the node's own address.
func (c *Cluster) onPremBridge() string { return fmt.Sprintf("nknode%d", c.opts.PortBase) }

// onPremSubnet is the real node's network: its first address is the node's,
// since a kubelet accepts none on loopback, the others are the pods'. With a pod
// network the node has the second, and its pods are elsewhere.
func (c *Cluster) onPremSubnet() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("172.29.%d.0/22", c.slot()*4))
}

func (c *Cluster) onPremAddress() netip.Addr {
	first := c.onPremSubnet().Addr().Next()
	if c.opts.PodNetwork {
		return first.Next()
	}
	return first
}

func (c *Cluster) containerdSocket() string { return c.onPremDir("containerd.sock") }

// startOnPremNode starts containerd, and the kubelet once the API server is there.
func (c *Cluster) startOnPremNode(ctx context.Context) error {
	if !c.opts.OnPremNode {
		return nil
	}
	if !c.opts.PodNetwork {
		if err := makeBridge(ctx, c.onPremBridge(), netip.PrefixFrom(c.onPremAddress(), c.onPremSubnet().Bits())); err != nil {
			return err
		}
	}
	for _, name := range []string{Containerd, Kubelet} {
		if err := c.Start(ctx, name); err != nil {
			return err
		}
	}
	if c.opts.PodNetwork {
		return c.joinOnPremNode(ctx)
	}
	return nil
}

func (c *Cluster) containerdCommand() (command, error) {
	path, err := c.find("containerd")
	if err != nil {
		return command{}, err
	}
	cni := findCNI()
	if cni == "" {
		return command{}, fmt.Errorf("the CNI plugins are missing: install containernetworking-plugins, or unpack them to %s", cniDirs[0])
	}
	network, err := c.onPremNetwork()
	if err != nil {
		return command{}, err
	}
	config := fmt.Sprintf(`# Written by nomad-kubelet's devcluster.
version = 2
root    = %[1]q
state   = %[2]q

[grpc]
  address = %[3]q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[6]q
  # Without CAP_SYS_RESOURCE nothing may lower an oom_score_adj.
  restrict_oom_score_adj       = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir  = %[4]q
    conf_dir = %[5]q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`, c.onPremDir("containerd"), c.onPremDir("containerd-state"), c.containerdSocket(), cni, c.onPremDir("cni"), c.sandboxImage())
	if err := os.MkdirAll(c.onPremDir("cni"), 0o755); err != nil {
		return command{}, err
	}
	if err := os.WriteFile(c.onPremDir("cni", "10-pods.conflist"), network, 0o644); err != nil {
		return command{}, err
	}
	file := c.onPremDir("containerd.toml")
	return c.inNode(command{path: path, args: []string{"--config=" + file}}), os.WriteFile(file, []byte(config), 0o644)
}

// sandboxImage is the conformance suite's, or one that Nomad's pods have, too.
func (c *Cluster) sandboxImage() string {
	if c.opts.PodNetwork {
		return pauseImage()
	}
	return "registry.k8s.io/pause:3.10.1"
}

func (c *Cluster) onPremNetwork() ([]byte, error) {
	subnet := c.onPremSubnet().String()
	if c.opts.PodNetwork {
		subnet = onPremPodCIDR
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       c.onPremBridge(),
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": c.onPremBridge(), "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type": "host-local", "dataDir": c.onPremDir("addresses"),
					"ranges": [][]any{{map[string]string{"subnet": subnet}}},
					"routes": []any{map[string]string{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
}

func (c *Cluster) ctr(ctx context.Context, args ...string) error {
	path, err := c.find("ctr")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--address", c.containerdSocket(), "--namespace", "k8s.io"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (c *Cluster) containerdReady(ctx context.Context) error {
	return c.ctr(ctx, "images", "list", "--quiet")
}

// onPremKubelet is the configuration of a kubelet that keeps to its own
// directories and changes nothing of the machine that it need not.
func (c *Cluster) onPremKubelet() ([]byte, error) {
	dns, domain := []string(nil), ""
	if c.opts.PodNetwork {
		dns, domain = []string{clusterDNS}, clusterDomain
	}
	return yaml.Marshal(&kubeletconfig.KubeletConfiguration{
		ClusterDNS: dns, ClusterDomain: domain,
		TypeMeta: metav1.TypeMeta{APIVersion: kubeletconfig.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		Address:  c.onPremAddress().String(),
		Port:     int32(c.Ports.Kubelet),
		Authentication: kubeletconfig.KubeletAuthentication{
			X509:      kubeletconfig.KubeletX509Authentication{ClientCAFile: c.pki().path("ca.crt")},
			Webhook:   kubeletconfig.KubeletWebhookAuthentication{Enabled: new(true)},
			Anonymous: kubeletconfig.KubeletAnonymousAuthentication{Enabled: new(false)},
		},
		Authorization:            kubeletconfig.KubeletAuthorization{Mode: kubeletconfig.KubeletAuthorizationModeWebhook},
		HealthzPort:              new(int32(c.Ports.KubeletHealth)),
		CgroupDriver:             "cgroupfs",
		FailCgroupV1:             new(false),
		FailSwapOn:               new(false),
		OOMScoreAdj:              new(int32(0)),
		MakeIPTablesUtilChains:   new(false),
		ContainerRuntimeEndpoint: "unix://" + c.containerdSocket(),
		PodLogsDir:               c.onPremDir("logs"),
		VolumePluginDir:          c.onPremDir("volume-plugins"),
		// A development machine's full disk is not what is tested.
		EvictionHard: map[string]string{
			"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%",
			"nodefs.inodesFree": "1%", "imagefs.inodesFree": "1%",
		},
		ImageGCHighThresholdPercent: new(int32(100)),
	})
}

func (c *Cluster) kubeletCommand() (command, error) {
	path, err := c.find("kubelet")
	if err != nil {
		return command{}, err
	}
	config, err := c.onPremKubelet()
	if err != nil {
		return command{}, err
	}
	const cert = "on-prem-kubelet"
	p := c.pki()
	if err := p.issue("ca", cert, subject{name: "system:node:" + OnPremNode, groups: []string{"system:nodes"}}); err != nil {
		return command{}, err
	}
	kubeconfig, file := p.path(cert+".kubeconfig"), c.onPremDir("kubelet.yaml")
	if err := c.writeKubeconfig(kubeconfig, cert, c.onPremAPIServer()); err != nil {
		return command{}, err
	}
	return c.inNode(command{path: path, args: []string{
		"--config=" + file, "--kubeconfig=" + kubeconfig, "--root-dir=" + c.onPremDir("kubelet"),
		"--hostname-override=" + OnPremNode, "--node-ip=" + c.onPremAddress().String(),
		"--node-labels=kubernetes.io/arch=" + runtime.GOARCH,
	}}), os.WriteFile(file, config, 0o644)
}

// kubeletReady waits until the real node is Ready.
func (c *Cluster) kubeletReady(ctx context.Context) error {
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, OnPremNode, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !nodeReady(node) {
		return fmt.Errorf("node %s is not Ready", OnPremNode)
	}
	return nil
}
