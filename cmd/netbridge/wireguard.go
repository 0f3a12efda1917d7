package main

import (
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/wireguard/userspace"
)

func newWireGuardCommand() *cobra.Command {
	var name, level string
	cmd := &cobra.Command{
		Use:   "wireguard",
		Short: "Carry the WireGuard device of a machine whose kernel cannot",
		Long: `Carry the WireGuard device of a machine whose kernel cannot.

It needs root and /dev/net/tun. The agent finds it by its socket below
/var/run/wireguard, and configures it. It is to run beside the agent and longer:
when it ends, this machine's packets stop until it is started again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			log := hclog.New(&hclog.LoggerOptions{Name: "netbridge.wireguard", Level: hclog.LevelFromString(level), Output: os.Stderr})
			return userspace.Run(cmd.Context(), name, log)
		},
	}
	cmd.Flags().StringVar(&name, "device", "nb0", "name of the device, the agent's")
	cmd.Flags().StringVar(&level, "log-level", "info", "trace, debug, info, warn or error")
	return cmd
}
