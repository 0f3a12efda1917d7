package devcluster

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// SetOutput says whom to tell each step.
func (c *Cluster) SetOutput(w io.Writer) { c.opts.Out = w }

// started lists the components that this cluster runs itself, in starting order.
func (c *Cluster) started() []string {
	var out []string
	for _, name := range components {
		_, agent := c.agent(name)
		switch {
		case !c.ownKubernetes() && (name == Etcd || name == APIServer || name == ControllerManager || name == Scheduler),
			(name == Nomad || name == NomadClient) && !agent, name == Docker && !c.ownNomad(),
			name == Docker && !c.ownDocker(), name == DockerProxy && !c.proxied(),
			name == NomadKubelet && (c.opts.NoNomadKubelet || c.opts.NoNomad),
			(name == Containerd || name == Kubelet) && !c.opts.OnPremNode,
			slices.Contains(podNetworkComponents, name) && !c.opts.PodNetwork,
			name == MetricsServer && !c.Running(name): // which is added later
		default:
			out = append(out, name)
		}
	}
	return out
}

// Status prints one line for each component. The error tells that one is not
// well.
func (c *Cluster) Status(ctx context.Context, w io.Writer) error {
	bad := 0
	for _, name := range c.started() {
		word := "healthy"
		pid := c.pid(name)
		if pid == 0 {
			word = "not running"
		} else if comp, err := c.component(name); err == nil {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			if err := comp.check(ctx); err != nil {
				word = "not healthy: " + err.Error()
			}
			cancel()
		}
		if word != "healthy" {
			bad++
			word += " (log: " + c.LogFile(name) + ")"
		}
		process := "-"
		if pid != 0 {
			process = fmt.Sprint(pid)
		}
		fmt.Fprintf(w, "%-24s %8s  %s\n", name, process, word)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d components are not well", bad, len(c.started()))
	}
	fmt.Fprintf(w, "\n%s", c.Hints())
	return nil
}

// Hints are the lines a user types next.
func (c *Cluster) Hints() string {
	var b strings.Builder
	fmt.Fprintf(&b, "export KUBECONFIG=%s\nexport NOMAD_ADDR=%s\n", c.KubeconfigFile(), c.NomadAddress())
	if c.opts.ACL {
		fmt.Fprintf(&b, "export NOMAD_TOKEN=$(cat %s)\n", c.ManagementTokenFile())
	}
	if c.dockerHost != "" && c.dockerHost != systemDocker {
		fmt.Fprintf(&b, "export DOCKER_HOST=%s\n", c.dockerHost)
	}
	if path, err := c.find("kubectl"); err == nil {
		fmt.Fprintf(&b, "%s get nodes,pods -o wide\n", path)
	}
	if path, err := c.find("nomad"); err == nil {
		fmt.Fprintf(&b, "%s job status\n", path)
	}
	return b.String()
}
