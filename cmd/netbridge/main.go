// Command netbridge is the pod network's program: the agent of a node, the
// controller for all of them, and the operator's tool.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is stamped by the linker.
var version = "0.0.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "netbridge:", err)
		stop()
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "netbridge",
		Short:         "One pod network over a Kubernetes cluster and Nomad",
		Version:       version,
		SilenceErrors: true,
	}
	root.AddCommand(newAgentCommand(), newControllerCommand(), newStatusCommand(), newFabricCommand(), newRemoveCommand(), newDoctorCommand(), newWireGuardCommand())
	return root
}
