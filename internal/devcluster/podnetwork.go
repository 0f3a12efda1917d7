package devcluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The ranges of the pod network, and what pods on Nomad are given as their name
// server. A machine has one pod network, whatever the number of its clusters.
const (
	clusterCIDR   = "10.244.0.0/16"
	onPremPodCIDR = "10.244.1.0/24"
	burstCIDR     = "10.77.0.0/16"
	clusterDNS    = "10.96.0.10"
	nodeLocalDNS  = "169.254.20.53"
	clusterDomain = "cluster.local"
	overlayDevice = "nb0"
	kubeProxyMode = "nftables"
	netbridgeMeta = "netbridge"
	consulHTTP    = 8500
	consulDNS     = 8600
)

// netbridgeIPAM is the plugin that gives Nomad's pods their addresses.
const netbridgeIPAM = "netbridge-ipam"

// podNetworkComponents are those that [Options.PodNetwork] adds.
var podNetworkComponents = []string{Consul, Netbridge, OnPremNetbridge, KubeProxy, OnPremKubeProxy, CoreDNS}

// startRecord makes the wire between the two sides, and starts what says who has
// which address.
func (c *Cluster) startRecord(ctx context.Context) error {
	if err := c.makeUnderlay(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(c.cniConfigDir(), 0o755); err != nil {
		return err
	}
	if err := c.Start(ctx, Consul); err != nil {
		return err
	}
	return c.setFabric(ctx)
}

// joinOnPremNode brings the real node into the pod network, once its kubelet runs.
func (c *Cluster) joinOnPremNode(ctx context.Context) error {
	dns := strings.NewReplacer("CLUSTERIP", clusterDNS, "ADDRESS", c.onPremAddress().String()).Replace(coreDNSManifests)
	if err := c.apply(ctx, "coredns.yaml", dns); err != nil {
		return err
	}
	for _, name := range []string{OnPremNetbridge, OnPremKubeProxy, CoreDNS} {
		if err := c.Start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// joinNomad brings this machine's Nomad client into the pod network.
func (c *Cluster) joinNomad(ctx context.Context) error {
	if err := c.Start(ctx, Netbridge); err != nil {
		return err
	}
	err := c.step("pod network on Nomad", func() (string, error) {
		if c.inPodNetwork(ctx) == nil {
			return "ready", nil
		}
		// A client that has not known the network looks for it at SIGHUP.
		for _, a := range c.agents() {
			if a.client {
				if err := c.Signal(a.component, syscall.SIGHUP); err != nil {
					return "", err
				}
			}
		}
		return "ready", c.ready(ctx, Nomad, nil, c.inPodNetwork)
	})
	if err != nil {
		return err
	}
	if err := c.shareImages(ctx); err != nil {
		return err
	}
	return c.Start(ctx, KubeProxy)
}

// inPodNetwork waits until the scheduler knows that pods are welcome.
func (c *Cluster) inPodNetwork(ctx context.Context) error {
	client, err := c.NomadClient()
	if err != nil {
		return err
	}
	stubs, _, err := client.Nodes().List(nil)
	if err != nil {
		return err
	}
	for _, s := range stubs {
		node, _, err := client.Nodes().Info(s.ID, nil)
		if err != nil {
			return err
		}
		if node.Meta[netbridgeMeta] != "" {
			return nil
		}
	}
	return errors.New("no Nomad client is in the pod network yet")
}

// shareImages gives the real node the images of the demonstration, which its
// containerd might not be able to fetch from where it is.
func (c *Cluster) shareImages(ctx context.Context) error {
	return c.step("images for "+OnPremNode, func() (string, error) {
		file := filepath.Join(c.opts.Dir, "run", "images.tar")
		defer os.Remove(file)
		f, err := os.Create(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if err := c.engine().saveImages(ctx, f, busyboxImage, pauseImage()); err != nil {
			return "", err
		}
		return "of Nomad's Docker", c.ctr(ctx, "images", "import", file)
	})
}
