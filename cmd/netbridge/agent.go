package main

import (
	"fmt"
	"os"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/internal/logging"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

func newAgentCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Bring this machine into the pod network and keep it there",
		Long: `Bring this machine into the pod network and keep it there.

It needs root, nft, and Consul at consul.address or CONSUL_HTTP_ADDR. What it sets
up stays when it ends: another agent takes it over without losing a packet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return runAgent(cmd, file)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func runAgent(cmd *cobra.Command, file string) error {
	cfg, err := agent.Load(file)
	if err != nil {
		return err
	}
	log := logging.Named("netbridge", os.Stderr, cfg.LogLevel, cfg.LogFormat)
	consul, err := cfg.Consul.Client()
	if err != nil {
		return err
	}
	a := &agent.Agent{Config: cfg, Consul: consul, Version: version, Log: log}
	if cfg.Node.Kind == fabric.KindNomad && !cfg.Nomad.Disabled {
		if a.Nomad, err = connectNomad(cfg.Nomad); err != nil {
			return err
		}
	}
	if cfg.Node.Name != "" {
		if a.Kube, err = connectKubernetes(cfg.Kubernetes); err != nil {
			return err
		}
	}
	return a.Run(cmd.Context())
}

func connectKubernetes(k agent.Kubernetes) (kubernetes.Interface, error) {
	c, err := connect.Kubernetes(k.Kubeconfig, version)
	if err != nil {
		return nil, fmt.Errorf("kubernetes.kubeconfig: %w", err)
	}
	c.UserAgent = "netbridge/" + version
	return kubernetes.NewForConfig(c)
}

func connectNomad(n agent.Nomad) (*nomadapi.Client, error) {
	c := nomadapi.DefaultConfig()
	if n.Address != "" {
		c.Address = n.Address
	}
	if n.TokenFile != "" {
		token, err := os.ReadFile(n.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("nomad.tokenFile: %w", err)
		}
		c.SecretID = strings.TrimSpace(string(token))
	}
	client, err := nomadapi.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("nomad at %s: %w", c.Address, err)
	}
	return client, nil
}
