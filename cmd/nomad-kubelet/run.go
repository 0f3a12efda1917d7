package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/internal/logging"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider"
)

// runFlags override single keys of the configuration file.
type runFlags struct {
	config, kubeconfig, nomadAddress, nomadTokenFile, node, nodePool, logLevel string
}

func newRunCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Register the virtual nodes and run their pods on Nomad",
		Long: `Register the virtual nodes of the configuration and run their pods on Nomad.

Without a configuration file there is one virtual node, "nomad", for the node
pool "default". Nomad is found by --nomad-address or NOMAD_ADDR and NOMAD_TOKEN
(and its other environment variables), the API server by --kubeconfig,
KUBECONFIG, or from inside the cluster.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return run(cmd, f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", "", "configuration file")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster to join")
	fl.StringVar(&f.nomadAddress, "nomad-address", "", "address of Nomad's HTTP API")
	fl.StringVar(&f.nomadTokenFile, "nomad-token-file", "", "file that holds the Nomad ACL token")
	fl.StringVar(&f.node, "node-name", "", "name of the one virtual node (without a configuration file)")
	fl.StringVar(&f.nodePool, "node-pool", "", "Nomad node pool of the one virtual node (without a configuration file)")
	fl.StringVar(&f.logLevel, "log-level", "", "trace, debug, info, warn or error")
	return cmd
}

func (f runFlags) load() (*config.Config, error) {
	cfg := &config.Config{}
	if f.config != "" {
		if f.node != "" || f.nodePool != "" {
			return nil, errors.New("--node-name and --node-pool are for runs without --config: write them into virtualNodes of the file")
		}
		var err error
		if cfg, err = config.Load(f.config); err != nil {
			return nil, err
		}
	} else if f.node != "" || f.nodePool != "" {
		name := f.node
		if name == "" {
			name = config.DefaultVirtualNode
		}
		cfg.VirtualNodes = []config.VirtualNode{{Name: name, NodePool: f.nodePool}}
	}
	override(&cfg.Kubeconfig, f.kubeconfig)
	override(&cfg.Nomad.Address, f.nomadAddress)
	override(&cfg.Nomad.TokenFile, f.nomadTokenFile)
	override(&cfg.LogLevel, f.logLevel)
	cfg.Complete()
	return cfg, cfg.Validate()
}

func override(v *string, by string) {
	if by != "" {
		*v = by
	}
}

func run(cmd *cobra.Command, f runFlags) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	log := logging.New(os.Stderr, cfg.LogLevel, cfg.LogFormat)
	log.Info("starts", "version", version)
	rest, err := connect.Kubernetes(cfg.Kubeconfig, version)
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("connect to the API server %s: %w", rest.Host, err)
	}
	nomad, err := connect.Nomad(cfg.Nomad)
	if err != nil {
		return err
	}
	if err := checkNomad(nomad, cfg, log); err != nil {
		return err
	}
	p := &nomadprovider.Provider{Config: cfg, Kube: kube, Nomad: nomad, Cluster: cfg.Cluster, NodeIP: cfg.Kubelet.NodeIP, Version: version, Log: log}
	if p.Cluster == "" {
		if p.Cluster, err = nomadprovider.ClusterID(ctx, kube, log); err != nil {
			return fmt.Errorf("API server %s: %w", rest.Host, err)
		}
	}
	if p.NodeIP == "" {
		if p.NodeIP, err = firstAddress(); err != nil {
			return err
		}
	}
	return p.Run(ctx)
}

// checkNomad tells a wrong token, which nothing but a right one mends, from a
// Nomad that is away, which is waited for.
func checkNomad(nomad *api.Client, cfg *config.Config, log hclog.Logger) error {
	for _, vn := range cfg.VirtualNodes {
		_, _, err := nomad.Jobs().List(&api.QueryOptions{Namespace: vn.Namespace, PerPage: 1})
		if err == nil {
			continue
		}
		if connect.Denied(err) {
			return fmt.Errorf("nomad at %s refuses the token for namespace %q (virtual node %q): set NOMAD_TOKEN or nomad.tokenFile to a token with the policy deploy/nomad/policy.hcl: %w",
				nomad.Address(), vn.Namespace, vn.Name, err)
		}
		log.Error("Nomad does not answer yet, the virtual nodes will be NotReady until it does; check NOMAD_ADDR or nomad.address",
			"address", nomad.Address(), "error", err)
		return nil
	}
	return nil
}

// firstAddress is this machine's first global unicast address.
func firstAddress() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list this machine's addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no address that the API server could call: set kubelet.nodeIP in the configuration")
}
