package main

import (
	"fmt"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

func newRemoveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Take this machine out of the pod network: devices, routes and rules",
		Long: `Take this machine out of the pod network.

It removes what the agent leaves in place when it ends: devices, routes and rules; of a
Nomad client, whose pods must be gone, the CNI network and meta.netbridge. The state
directory and the claims in Consul stay: an agent that starts again is who it was.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			cfg, err := agent.Load(file)
			if err != nil {
				return err
			}
			var nomad *nomadapi.Client
			if cfg.Node.Kind == fabric.KindNomad && !cfg.Nomad.Disabled {
				if nomad, err = connectNomad(cfg.Nomad); err != nil {
					return err
				}
			}
			done, err := agent.Remove(cmd.Context(), cfg, nomad)
			for _, what := range done {
				fmt.Fprintln(cmd.OutOrStdout(), "removed", what)
			}
			if err == nil && len(done) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing of netbridge is here")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the agent's configuration file")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}
