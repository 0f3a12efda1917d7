package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// newTranslateCommand is the dry run: what a manifest becomes on Nomad, with
// neither cluster at hand.
func newTranslateCommand() *cobra.Command {
	var file, output, configFile, node string
	cmd := &cobra.Command{
		Use:   "translate -f FILE|-",
		Short: "Show the Nomad jobs that manifests become",
		Long: `Show the Nomad jobs that Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets,
Jobs and CronJobs become, without a cluster. ConfigMaps, Secrets and Services in
the same input are taken into account; values of Secrets are never shown.

Notes on what is carried approximately go to standard error. The exit code is 1
when a field is refused.`,
		Example: `  nomad-kubelet translate -f pod.yaml > pod.nomad.hcl
  kubectl get deploy web -o yaml | nomad-kubelet translate -f - -o notes`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return errors.New("translate: give a file with -f, or - for standard input")
			}
			write, ok := jobWriters[output]
			if !ok {
				return fmt.Errorf("translate: output %q is none of hcl, json, notes", output)
			}
			in, err := dryRunInputs(configFile, node)
			if err != nil {
				return err
			}
			data, err := readInput(file, cmd.InOrStdin())
			if err != nil {
				return err
			}
			set, err := parseManifests(data)
			if err != nil {
				return fmt.Errorf("translate %s: %w", file, err)
			}
			return translateAll(set, in, write, output == "notes", cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "manifest to read, - for standard input")
	cmd.Flags().StringVarP(&output, "output", "o", "hcl", "hcl, json or notes")
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file of nomad-kubelet run; without it the defaults")
	cmd.Flags().StringVar(&node, "node", "", "virtual node of the configuration, by default the first")
	return cmd
}

func readInput(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return data, nil
	}
	return os.ReadFile(file)
}

// dryRunInputs builds the inputs of a virtual node from its configuration.
func dryRunInputs(file, node string) (translate.Inputs, error) {
	c := &config.Config{}
	if file != "" {
		loaded, err := config.Load(file)
		if err != nil {
			return translate.Inputs{}, err
		}
		c = loaded
	} else {
		c.Complete()
	}
	in := translate.Inputs{Cluster: c.Cluster, Offline: true}
	if in.Cluster == "" {
		in.Cluster = "dryrun"
	}
	for _, n := range c.VirtualNodes {
		if node == "" || n.Name == node {
			in.Node = config.Profile(n)
			in.Node.Region = c.Nomad.Region
			return in, nil
		}
	}
	return in, fmt.Errorf("translate: the configuration has no virtual node %q", node)
}

// jobWriters are the forms of output.
var jobWriters = map[string]func(io.Writer, *translate.Result) error{
	"hcl": func(w io.Writer, r *translate.Result) error {
		data, err := translate.HCL(r.Job)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	},
	"json": func(w io.Writer, r *translate.Result) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"Job": r.Job})
	},
	"notes": func(io.Writer, *translate.Result) error { return nil },
}

// translateAll writes the jobs of all pods. What is refused does not keep
// the others from being shown.
func translateAll(set *manifests, in translate.Inputs, write func(io.Writer, *translate.Result) error, notesOut bool, out, errOut io.Writer) error {
	if len(set.pods) == 0 {
		return errors.New("translate: the input has no pods or workloads")
	}
	notes := errOut
	if notesOut {
		notes = out
	}
	for _, s := range set.skipped {
		fmt.Fprintln(errOut, "skipped:", s)
	}
	refused := 0
	for i, p := range set.pods {
		res, err := translate.Job(p.pod, set.inputs(in, p.pod.Namespace))
		if err != nil {
			refused++
			var r *translate.RefusedError
			if !errors.As(err, &r) {
				fmt.Fprintf(errOut, "%s: %v\n", p.source, err)
				continue
			}
			for _, f := range r.Refusals {
				fmt.Fprintf(errOut, "%s: refused: %s: %s\n", p.source, f.Field, f.Reason)
			}
			continue
		}
		for _, n := range res.Notes {
			fmt.Fprintf(notes, "%s: note: %s: %s\n", p.source, n.Field, n.Message)
		}
		if i > 0 && !notesOut {
			fmt.Fprintln(out)
		}
		if err := write(out, res); err != nil {
			return err
		}
	}
	if refused > 0 {
		return fmt.Errorf("translate: %d of %d pods cannot run on virtual node %s", refused, len(set.pods), in.Node.Name)
	}
	return nil
}
