package devcluster

import (
	"context"
	_ "embed"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

//go:embed metricsserver.yaml
var metricsServerManifests string

// StartMetricsServer adds metrics-server to a cluster with its own control plane and
// Nomad, and returns when it tells what the virtual node uses.
func (c *Cluster) StartMetricsServer(ctx context.Context) error {
	// An endpoint cannot be on loopback, and nobody else is to reach it.
	manifests := strings.NewReplacer("ADDRESS", c.nodeIP(), "PORT", strconv.Itoa(c.Ports.MetricsServer)).Replace(metricsServerManifests)
	if err := c.apply(ctx, "metricsserver.yaml", manifests); err != nil {
		return err
	}
	if err := c.writeAccountKubeconfig(ctx, c.metricsServerKubeconfig(), "metrics-server"); err != nil {
		return err
	}
	return c.Start(ctx, MetricsServer)
}

func (c *Cluster) metricsServerKubeconfig() string { return c.pki().path("metrics-server.kubeconfig") }

// writeAccountKubeconfig makes a kubeconfig with a token of an account in kube-system.
func (c *Cluster) writeAccountKubeconfig(ctx context.Context, file, account string) error {
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	token, err := client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(24 * 60 * 60))},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of account %s: %w", account, err)
	}
	kc := clientcmdapi.NewConfig()
	kc.Clusters["dev"] = &clientcmdapi.Cluster{Server: c.apiServerURL(), CertificateAuthority: c.pki().path("ca.crt")}
	kc.AuthInfos[account] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	kc.Contexts["dev"] = &clientcmdapi.Context{Cluster: "dev", AuthInfo: account}
	kc.CurrentContext = "dev"
	return clientcmd.WriteToFile(*kc, file)
}

func (c *Cluster) metricsServerCommand() (command, error) {
	path, err := c.find("metrics-server")
	if err != nil {
		return command{}, err
	}
	kc := c.metricsServerKubeconfig()
	return command{path: path, args: []string{
		"--kubeconfig=" + kc, "--authentication-kubeconfig=" + kc, "--authorization-kubeconfig=" + kc,
		"--bind-address=" + c.nodeIP(), "--secure-port=" + strconv.Itoa(c.Ports.MetricsServer),
		"--cert-dir=" + filepath.Join(c.opts.Dir, "metrics-server"),
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-use-node-status-port",
		// Virtual nodes sign their own certificates, and all of this is one machine.
		"--kubelet-insecure-tls",
		// As often as it can.
		"--metric-resolution=10s", "--kubelet-request-timeout=9s",
	}}, nil
}

// metricsServerReady asks for what the virtual node uses, by way of the API server.
func (c *Cluster) metricsServerReady(ctx context.Context) error {
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes", VirtualNode).Do(ctx).Error()
}
