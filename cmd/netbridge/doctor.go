package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/doctor"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

func newDoctorCommand() *cobra.Command {
	var file, format string
	var d doctor.Doctor
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine, Consul and the paths to its peers for what the pod network needs",
		Long: `Check this machine, Consul and the paths to its peers for what the pod network needs.

Run it as root with the agent's configuration, before the agent runs or beside it.
Nothing that it does stays. The exit code is 1 when pods would be at risk.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("-o: %q is neither text nor json", format)
			}
			cmd.SilenceUsage = true
			return runDoctor(cmd, d, file, format)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the agent's configuration file")
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&d.CNIDir, "cni-conf-dir", doctor.DefaultCNIDir, "a Kubernetes node's network plugins")
	cmd.Flags().StringVar(&d.FlannelEnv, "flannel-env", doctor.DefaultFlannelEnv, "what flannel writes for its plugin")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

func runDoctor(cmd *cobra.Command, d doctor.Doctor, file, format string) (err error) {
	if d.Config, err = agent.Load(file); err != nil {
		return err
	}
	if d.Consul, err = d.Config.Consul.Client(); err != nil {
		return err
	}
	if d.Config.Node.Kind == fabric.KindNomad && !d.Config.Nomad.Disabled {
		if d.Nomad, err = connectNomad(d.Config.Nomad); err != nil {
			return err
		}
	}
	if d.Config.Node.Name != "" {
		if d.Kube, err = connectKubernetes(d.Config.Kubernetes); err != nil {
			return err
		}
	}
	r := d.Run(cmd.Context())
	write := r.WriteText
	if format == "json" {
		write = r.WriteJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	return r.Err()
}
