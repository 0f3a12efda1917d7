package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
)

func newStatusCommand() *cobra.Command {
	var socket, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell this machine's blocks, its peers, and what is not as it should be",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			st, err := agent.Ask(cmd.Context(), socket)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(st)
			case "text":
				return print(cmd.OutOrStdout(), st)
			}
			return fmt.Errorf("--output: %q is neither text nor json", output)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "/run/netbridge/agent.sock", "the agent's socket")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func print(w io.Writer, st agent.Status) error {
	consul := "answers"
	if st.Consul != "" {
		consul = fmt.Sprintf("away since %s: %s", st.ConsulSeen.Format("15:04:05 MST"), st.Consul)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "node\t%s\nfabric\t%s\nranges\t%s\noverlay address\t%s\nendpoint\t%s\nMTU\t%d\n",
		st.ID, st.Fabric, join(st.Own.CIDRs), st.Own.Host, st.Own.Endpoint, st.Own.MTU)
	if st.Own.WG != "" {
		fmt.Fprintf(t, "WireGuard key\t%s\n", st.Own.WG)
	}
	if st.Addresses > 0 {
		fmt.Fprintf(t, "addresses used\t%d of %d\n", st.Used, st.Addresses)
	}
	fmt.Fprintf(t, "Consul\t%s\n", consul)
	for _, line := range [][2]string{{"list of nodes", st.Incomplete}, {"gives no addresses", st.Fenced}} {
		if line[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", line[0], line[1])
		}
	}
	for _, what := range slices.Sorted(maps.Keys(st.Problems)) {
		fmt.Fprintf(t, "problem: %s\t%s\n", what, st.Problems[what])
	}
	for _, d := range st.Drift {
		fmt.Fprintf(t, "differs\t%s\n", d)
	}
	fmt.Fprintf(t, "\nPEER\tOVERLAY\tENDPOINT\tMTU\tRANGES\n")
	for _, id := range slices.Sorted(maps.Keys(st.Peers)) {
		p := st.Peers[id]
		held := ""
		if slices.Contains(st.Held, id) {
			held = " (missing, kept)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s%s\n", id, p.Host, p.Endpoint, p.MTU, join(p.CIDRs), held)
	}
	for _, id := range slices.Sorted(maps.Keys(st.Refused)) {
		fmt.Fprintf(t, "%s\tnot followed: %s\n", id, st.Refused[id])
	}
	return t.Flush()
}

func join[T fmt.Stringer](items []T) string {
	s := make([]string, len(items))
	for i, v := range items {
		s[i] = v.String()
	}
	return strings.Join(s, " ")
}
