package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/internal/logging"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller"
)

func newControllerCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Act for all nodes: collect what is gone, export and import services",
		Long: `Act for all nodes: take away the records of nodes that are gone, bring Services
into Consul and Consul's services into the cluster.

Several may run; one leads. No node needs it to join or to stay in the network.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return runController(cmd, file)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func runController(cmd *cobra.Command, file string) error {
	cfg, err := controller.Load(file)
	if err != nil {
		return err
	}
	log := logging.Named("netbridge", os.Stderr, cfg.LogLevel, cfg.LogFormat)
	c := &controller.Controller{Config: cfg, Version: version, Log: log}
	if c.Consul, err = cfg.Consul.Client(); err != nil {
		return err
	}
	if !cfg.Nomad.Disabled {
		if c.Nomad, err = connectNomad(cfg.Nomad); err != nil {
			return err
		}
	}
	if c.Kube, err = connectKubernetes(cfg.Kubernetes); err != nil {
		return err
	}
	if err := c.Run(cmd.Context()); err != nil {
		return fmt.Errorf("controller: %w", err)
	}
	return nil
}
