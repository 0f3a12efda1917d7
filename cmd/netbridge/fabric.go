package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

func newFabricCommand() *cobra.Command {
	var name, address string
	cmd := &cobra.Command{
		Use:   "fabric",
		Short: "Read or write the settings that all nodes share, in Consul",
	}
	open := func() (*registry.Registry, error) {
		client, err := agent.Consul{Address: address}.Client()
		if err != nil {
			return nil, err
		}
		return registry.New(client, name), nil
	}
	cmd.PersistentFlags().StringVar(&name, "fabric", "default", "name of the fabric")
	cmd.PersistentFlags().StringVar(&address, "consul-address", "", "Consul's HTTP API (default: CONSUL_HTTP_ADDR)")
	show := &cobra.Command{
		Use:   "show",
		Short: "Show them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			r, err := open()
			if err != nil {
				return err
			}
			s, err := r.Settings(cmd.Context())
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		},
	}
	var file string
	set := &cobra.Command{
		Use:   "set",
		Short: "Write them from a file; what it leaves out gets its default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			var s fabric.Settings
			if err := agent.DecodeStrict(data, &s); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			s.Complete()
			r, err := open()
			if err != nil {
				return err
			}
			return r.SetSettings(cmd.Context(), s)
		},
	}
	set.Flags().StringVarP(&file, "file", "f", "", "settings, YAML or JSON")
	_ = set.MarkFlagRequired("file")
	cmd.AddCommand(show, set)
	return cmd
}
