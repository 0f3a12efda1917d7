package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The nodes that the suite is run on.
const (
	virtualNode = "virtual"
	controlNode = "kubelet"
)

// place is where a run finds and leaves its things.
type place struct {
	root   string // the repository
	binDir string
	work   string // .dev/conformance
}

func (p place) nodeDir(node string) string { return filepath.Join(p.work, node) }

// clusterOptions are the cluster whose only node is the one of that name. With the
// pod network it has both, since the network is one of both.
func (p place) clusterOptions(node string, network bool, out io.Writer) (devcluster.Options, error) {
	opts := devcluster.Options{
		Dir: filepath.Join(p.nodeDir(node), "cluster"), BinDir: p.binDir, Out: out, PodNetwork: network,
	}
	if node == controlNode {
		opts.PortBase, opts.NoNomad, opts.OnPremNode = 23100, !network, true
		opts.OwnDocker = network
		opts.Configure = func(c *config.Config) { c.VirtualNodes[0].Taints = &[]corev1.Taint{notMeasured} }
		return opts, nil
	}
	client, err := openClient(deploynomad.Client)
	if err != nil {
		return opts, err
	}
	opts.PortBase, opts.OwnDocker, opts.ClientHCL = 23000, true, client
	opts.CacheDir = filepath.Join(p.work, "cache")
	opts.Configure = func(c *config.Config) { openNode(&c.VirtualNodes[0]) }
	return opts, nil
}

// openNode takes away what keeps ordinary pods off a virtual node: the suite's
// pods tolerate nothing, and some want the host.
func openNode(n *config.VirtualNode) {
	n.Taints = &[]corev1.Taint{}
	n.HostAccess = translate.HostAccess{
		HostPaths: []string{"/"}, Privileged: true, HostNetwork: true, HostPID: true, HostIPC: true, HostPorts: true,
		// No sysctls: a spec wants an unsafe one refused.
		Capabilities: []string{"ALL"}, Unconfined: true,
	}
}

var (
	allowedCaps  = regexp.MustCompile(`allow_caps = \[[^\]]*\]`)
	noPrivileged = regexp.MustCompile(`allow_privileged = false`)
)

// openClient is client.hcl with the same access opened on Nomad's side.
func openClient(hcl string) (string, error) {
	for _, change := range []struct {
		from *regexp.Regexp
		to   string
	}{{allowedCaps, `allow_caps = ["all"]`}, {noPrivileged, `allow_privileged = true`}} {
		if !change.from.MatchString(hcl) {
			return "", fmt.Errorf("deploy/nomad/client.hcl: nothing in it reads %s", change.from)
		}
		hcl = change.from.ReplaceAllString(hcl, change.to)
	}
	return hcl, nil
}

// start brings the cluster of a node up, with the suite's images in its engine.
// What an interrupted run has left is cleared first.
func (p place) start(ctx context.Context, node string, network bool, images *archive, out io.Writer) (*devcluster.Cluster, error) {
	opts, err := p.clusterOptions(node, network, out)
	if err != nil {
		return nil, err
	}
	if err := stopIn(ctx, opts.Dir); err != nil {
		return nil, err
	}
	if err := devcluster.Prerequisites(ctx, opts, true, out); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "Starting the cluster of the node %q\n", node)
	c, err := devcluster.Up(ctx, opts)
	if err != nil {
		return c, err
	}
	// The label tells of Nomad's Docker alone.
	if network || c.ImageLabel(ctx, images.probe, recipeLabel) != images.recipe {
		fmt.Fprintln(out, "  loading the suite's images")
		if err := c.LoadImages(ctx, images.file); err != nil {
			return c, err
		}
	}
	if network && node == virtualNode {
		return c, leaveControl(ctx, c)
	}
	return c, nil
}

// notMeasured keeps the suite's pods off the node that only carries its share of the
// pod network.
var notMeasured = corev1.Taint{Key: "nomad-kubelet.io/not-measured", Effect: corev1.TaintEffectNoSchedule}

func leaveControl(ctx context.Context, c *devcluster.Cluster) error {
	kube, err := clientOf(c)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"spec": corev1.NodeSpec{Taints: []corev1.Taint{notMeasured}}})
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().Nodes().Patch(ctx, nodeNames[controlNode], types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	return err
}

// nodeNames are those of the Nodes.
var nodeNames = map[string]string{virtualNode: devcluster.VirtualNode, controlNode: devcluster.OnPremNode}

func clientOf(c *devcluster.Cluster) (*kubernetes.Clientset, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// stopIn stops the cluster of a directory, if there is one.
func stopIn(ctx context.Context, dir string) error {
	c, err := devcluster.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// software is what a node runs, as its Node object says.
type software struct {
	Kubelet string `json:"kubelet"`
	Runtime string `json:"runtime"`
	Kernel  string `json:"kernel"`
	OS      string `json:"os"`
	Cores   int    `json:"cores"`
}

func softwareOf(ctx context.Context, c *devcluster.Cluster, node string) (software, error) {
	kube, err := clientOf(c)
	if err != nil {
		return software{}, err
	}
	n, err := kube.CoreV1().Nodes().Get(ctx, nodeNames[node], metav1.GetOptions{})
	if err != nil {
		return software{}, err
	}
	info := n.Status.NodeInfo
	return software{info.KubeletVersion, info.ContainerRuntimeVersion, info.KernelVersion, info.OSImage, runtime.NumCPU()}, nil
}
