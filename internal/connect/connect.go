// Package connect makes the clients of Kubernetes and Nomad from the
// configuration and the environment.
package connect

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/hashicorp/go-cleanhttp"
	"github.com/hashicorp/nomad/api"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

// The API server protects itself by priority and fairness; these only keep one
// process from a runaway loop. Per second, and at once.
const (
	kubeQPS   = 1000
	kubeBurst = 2000
	// nomadIdle keeps connections open between requests.
	nomadIdle = 48
)

// Kubernetes follows path, then KUBECONFIG, then the in-cluster account.
func Kubernetes(path, version string) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if path != "" || os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "" {
		rules := clientcmd.NewDefaultClientConfigLoadingRules()
		rules.ExplicitPath = path
		c, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	} else if c, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no API server: give --kubeconfig, KUBECONFIG or kubeconfig in the configuration, or run inside the cluster")
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	c.QPS, c.Burst = kubeQPS, kubeBurst
	c.UserAgent = "nomad-kubelet/" + version
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return c, nil
}

// Nomad completes the configuration by Nomad's own environment variables.
func Nomad(n config.Nomad) (*api.Client, error) {
	c := api.DefaultConfig()
	set(&c.Address, n.Address)
	set(&c.Region, n.Region)
	set(&c.TLSConfig.CACert, n.CAFile)
	set(&c.TLSConfig.ClientCert, n.CertFile)
	set(&c.TLSConfig.ClientKey, n.KeyFile)
	set(&c.TLSConfig.TLSServerName, n.TLSServerName)
	if n.TokenFile != "" {
		token, err := os.ReadFile(n.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("nomad.tokenFile: %w", err)
		}
		c.SecretID = strings.TrimSpace(string(token))
	}
	transport := cleanhttp.DefaultPooledTransport()
	transport.MaxIdleConnsPerHost = nomadIdle
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	c.HttpClient = &http.Client{Transport: transport}
	if err := api.ConfigureTLS(c.HttpClient, c.TLSConfig); err != nil {
		return nil, fmt.Errorf("TLS for Nomad: %w", err)
	}
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("connect to Nomad %s: %w", c.Address, err)
	}
	return client, nil
}

func set(v *string, to string) {
	if to != "" {
		*v = to
	}
}

// Denied says whether Nomad refused a request for want of rights.
func Denied(err error) bool {
	var r api.UnexpectedResponseError
	return errors.As(err, &r) && (r.StatusCode() == http.StatusForbidden || r.StatusCode() == http.StatusUnauthorized)
}
