package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/doctor"
)

func newDoctorCommand() *cobra.Command {
	var path, format string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check Kubernetes, Nomad and its clients for what virtual nodes need",
		Long: `Check Kubernetes, Nomad and its clients for what virtual nodes need.

Run it with the configuration, the kubeconfig and the Nomad token that the
daemon runs with. Nothing is changed. The exit code is 1 when pods would be at
risk.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("-o: %q is neither text nor json", format)
			}
			cmd.SilenceUsage = true
			return runDoctor(cmd, path, format)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file of nomad-kubelet run")
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}

func runDoctor(cmd *cobra.Command, path, format string) error {
	cfg := &config.Config{}
	cfg.Complete()
	if path != "" {
		var err error
		if cfg, err = config.Load(path); err != nil {
			return err
		}
	}
	d := &doctor.Doctor{Config: cfg}
	if rest, err := connect.Kubernetes(cfg.Kubeconfig, version); err != nil {
		d.KubeErr = err
	} else if d.Kube, err = kubernetes.NewForConfig(rest); err != nil {
		d.Kube, d.KubeErr = nil, err
	}
	d.Nomad, d.NomadErr = connect.Nomad(cfg.Nomad)
	report := d.Run(cmd.Context())
	write := report.WriteText
	if format == "json" {
		write = report.WriteJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	return report.Err()
}
