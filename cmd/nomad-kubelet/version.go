package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the one that the nodes report",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "nomad-kubelet %s\nkubelet version on nodes: %s\n", version, node.KubeletVersion(version))
		},
	}
}
