package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// newDevCommand is the local hybrid: a Kubernetes control plane, Nomad and this
// program between them, for trying things out.
func newDevCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a local Kubernetes and Nomad with a virtual node between them",
		Long: `Run a local hybrid for development: etcd, kube-apiserver, kube-controller-manager,
kube-scheduler, a Docker engine (unless one answers), a Nomad agent, and
nomad-kubelet between them. Programs come from --bin-dir, from the directory of
this program, or from PATH; nothing is downloaded or built.

State, logs and the kubeconfig lie in --dir. It needs root.`,
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", ".dev", "state directory")
	cmd.AddCommand(newDevUpCommand(&dir), newDevDownCommand(&dir), newDevStatusCommand(&dir), newDevDemoCommand(&dir))
	return cmd
}

func newDevUpCommand(dir *string) *cobra.Command {
	opts := devcluster.Options{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start what does not run yet",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			opts.Dir, opts.Out = *dir, cmd.OutOrStdout()
			c, err := devcluster.Up(cmd.Context(), opts)
			if c != nil && err != nil {
				return fmt.Errorf("%w\nWhat has started runs on, to be looked at; nomad-kubelet dev down stops it", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s", c.Hints())
			return nil
		},
	}
	addDevFlags(cmd, &opts)
	return cmd
}

// newDevDemoCommand is what make demo runs.
func newDevDemoCommand(dir *string) *cobra.Command {
	opts := devcluster.Options{}
	examples := "examples"
	cmd := &cobra.Command{
		Use:    "demo",
		Short:  "Start everything and run the examples hello and vm",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			opts.Dir, opts.Out = *dir, cmd.OutOrStdout()
			return devcluster.Demo(cmd.Context(), opts, examples)
		},
	}
	addDevFlags(cmd, &opts)
	cmd.Flags().StringVar(&examples, "examples", examples, "directory of the examples")
	return cmd
}

func addDevFlags(cmd *cobra.Command, opts *devcluster.Options) {
	f := cmd.Flags()
	f.StringVar(&opts.Kubeconfig, "kubeconfig", "", "use the cluster of this kubeconfig instead of starting a control plane")
	f.StringVar(&opts.NomadAddress, "nomad-address", "", "use this Nomad instead of starting an agent")
	f.StringVar(&opts.NomadTokenFile, "nomad-token-file", "", "file with the token for --nomad-address")
	f.StringVar(&opts.BinDir, "bin-dir", "", "directory searched for programs before PATH")
	f.IntVar(&opts.PortBase, "port-base", devcluster.DefaultPortBase, "first of 20 loopback ports to use")
	f.BoolVar(&opts.ACL, "acl", false, "switch Nomad's access control on, with a token of deploy/nomad/policy.hcl for nomad-kubelet")
	f.BoolVar(&opts.OwnDocker, "own-docker", false, "start a Docker engine even if one answers")
	f.BoolVar(&opts.MockRuntime, "mock", false, "add the RuntimeClass nomad-mock, whose pods are only pretended to run")
	f.BoolVar(&opts.VMImage, "vm-image", false, "build and install the disk image of examples/vm")
	f.BoolVar(&opts.PodNetwork, "pod-network", false, "add a real node in a network namespace, and join it and Nomad in one pod network")
	f.BoolVar(&opts.NoNomadKubelet, "no-nomad-kubelet", false, "start everything but nomad-kubelet itself")
}

func newDevDownCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop everything and leave nothing behind but the cache and the logs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			c, err := devcluster.Open(*dir)
			if errors.Is(err, os.ErrNotExist) {
				fmt.Fprintf(cmd.OutOrStdout(), "Nothing runs in %s.\n", *dir)
				return nil
			}
			if err != nil {
				return err
			}
			c.SetOutput(cmd.OutOrStdout())
			return c.Down(cmd.Context())
		},
	}
}

func newDevStatusCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell what runs and whether it is healthy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			c, err := devcluster.Open(*dir)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("nothing runs in %s: start it with nomad-kubelet dev up", *dir)
			}
			if err != nil {
				return err
			}
			return c.Status(cmd.Context(), cmd.OutOrStdout())
		},
	}
}
