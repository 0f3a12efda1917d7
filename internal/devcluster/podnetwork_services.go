package devcluster

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed coredns.yaml
var coreDNSManifests string

// kubeProxyCommand runs the cluster's Service proxy for the virtual node, or for
// the real one.
func (c *Cluster) kubeProxyCommand(node string) (command, error) {
	path, err := c.find("kube-proxy")
	if err != nil {
		return command{}, err
	}
	server, name := c.apiServerURL(), KubeProxy
	if node == OnPremNode {
		server, name = c.onPremAPIServer(), OnPremKubeProxy
	}
	p := c.pki()
	if err := p.issue("ca", "kube-proxy", subject{name: "system:kube-proxy"}); err != nil {
		return command{}, err
	}
	kubeconfig := p.path(name + ".kubeconfig")
	if err := c.writeKubeconfig(kubeconfig, "kube-proxy", server); err != nil {
		return command{}, err
	}
	cmd := command{path: path, args: []string{
		"--kubeconfig=" + kubeconfig, "--hostname-override=" + node, "--proxy-mode=" + kubeProxyMode,
		"--healthz-bind-address=", "--metrics-bind-address=",
		// The kernel's table of connections is the machine's to size.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	}}
	if node == OnPremNode {
		cmd = c.inNode(cmd)
	}
	return cmd, nil
}

// kubeProxyReady waits until it has written rules.
func (c *Cluster) kubeProxyReady(node string) func(context.Context) error {
	return func(ctx context.Context) error {
		cmd := command{path: lookPath("nft"), args: []string{"list", "map", "ip", "kube-proxy", "service-ips"}}
		if node == OnPremNode {
			cmd = c.inNode(cmd)
		}
		out, err := exec.CommandContext(ctx, cmd.path, cmd.args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), kubernetesService) {
			return fmt.Errorf("kube-proxy has no rule for the Service kubernetes yet: %s", strings.TrimSpace(string(out)))
		}
		return nil
	}
}

// coreDNSCommand runs the cluster's DNS on the real node.
func (c *Cluster) coreDNSCommand() (command, error) {
	path, err := c.find("coredns")
	if err != nil {
		return command{}, err
	}
	const account = "coredns"
	p := c.pki()
	if err := p.issue("ca", account, subject{name: "system:coredns"}); err != nil {
		return command{}, err
	}
	kubeconfig := p.path(account + ".kubeconfig")
	if err := c.writeKubeconfig(kubeconfig, account, c.onPremAPIServer()); err != nil {
		return command{}, err
	}
	// As kubeadm writes it (kubernetes, cmd/kubeadm/app/phases/addons/dns/manifests.go).
	corefile := fmt.Sprintf(`.:53 {
    bind %s
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . /etc/resolv.conf
    cache 30
    loadbalance
}
`, c.onPremAddress(), clusterDomain, kubeconfig)
	file := filepath.Join(c.opts.Dir, "run", "Corefile")
	return c.inNode(command{path: path, args: []string{"-conf=" + file}}), os.WriteFile(file, []byte(corefile), 0o644)
}

// coreDNSReady asks it as a pod of the real node would.
func (c *Cluster) coreDNSReady(ctx context.Context) error {
	busybox, err := StaticBusybox()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, busybox, "nslookup", "kubernetes.default.svc."+clusterDomain, c.onPremAddress().String()).CombinedOutput()
	if err != nil || !strings.Contains(string(out), kubernetesService) {
		return fmt.Errorf("CoreDNS does not know the Service kubernetes yet: %s", strings.TrimSpace(string(out)))
	}
	return nil
}
