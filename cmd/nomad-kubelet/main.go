// Command nomad-kubelet registers virtual Kubernetes nodes whose pods run on
// HashiCorp Nomad.
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
		fmt.Fprintln(os.Stderr, "nomad-kubelet:", err)
		stop()
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "nomad-kubelet",
		Short:         "A Kubernetes node whose pods run on HashiCorp Nomad",
		Version:       version,
		SilenceErrors: true,
	}
	root.AddCommand(newRunCommand(), newTranslateCommand(), newDevCommand(), newDoctorCommand(), newVersionCommand())
	return root
}
