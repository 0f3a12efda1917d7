package devcluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Demo brings the cluster up, applies examples/hello and examples/vm, waits
// until all of it runs, and shows it from both sides.
func Demo(ctx context.Context, opts Options, examples string) error {
	start := time.Now()
	opts.VMImage = true
	if err := Prerequisites(ctx, opts, true, opts.Out); err != nil {
		return err
	}
	fmt.Fprintln(opts.Out, "Starting Kubernetes and Nomad")
	c, err := Up(ctx, opts)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"kubectl", "apply", "-f", filepath.Join(examples, "hello"), "-f", filepath.Join(examples, "vm")},
		{"kubectl", "rollout", "status", "deployment/hello", "--timeout=120s"},
		{"kubectl", "wait", "--for=condition=complete", "job/hello-once", "--timeout=120s"},
		{"kubectl", "wait", "--for=jsonpath={.status.phase}=Running", "pod/hello-vm", "--timeout=120s"},
		{"kubectl", "get", "nodes,pods,services", "-o", "wide"},
		{"nomad", "job", "status"},
		{"kubectl", "logs", "--selector=app=hello", "--prefix", "--tail=3"},
		{"kubectl", "logs", "job/hello-once"},
	} {
		if err := c.show(ctx, args...); err != nil {
			_ = c.show(context.WithoutCancel(ctx), "kubectl", "describe", "pods")
			return err
		}
	}
	if err := c.showConsole(ctx); err != nil {
		return err
	}
	if c.opts.PodNetwork {
		if err := c.showPodNetwork(ctx, examples); err != nil {
			return err
		}
	}
	kubectl, err := c.find("kubectl")
	if err != nil {
		return err
	}
	fmt.Fprintf(opts.Out, `
All of it runs, after %.0f s. It stays up; make demo-down stops it. Next:

%s%s exec -it deploy/hello -- sh
%s delete pod hello-vm
`, time.Since(start).Seconds(), c.Hints(), kubectl, kubectl)
	return nil
}

// showPodNetwork has a pod of the cluster's own and one on Nomad call each other by
// the names of their Services.
func (c *Cluster) showPodNetwork(ctx context.Context, examples string) error {
	for _, args := range [][]string{
		{"kubectl", "apply", "-f", filepath.Join(examples, "pod-network")},
		{"kubectl", "rollout", "status", "deployment/in-cluster", "--timeout=120s"},
		{"kubectl", "rollout", "status", "deployment/on-nomad", "--timeout=120s"},
		{"kubectl", "get", "pods", "-o", "wide", "--selector=app in (in-cluster, on-nomad)"},
		{"kubectl", "exec", "deploy/in-cluster", "--", "sh", "/scripts/call", "on-nomad"},
		{"kubectl", "exec", "deploy/on-nomad", "--", "sh", "/scripts/call", "in-cluster"},
		{"kubectl", "exec", "deploy/on-nomad", "--", "nslookup", "kubernetes.default.svc.cluster.local"},
		{"netbridge", "status", "--socket", c.netbridgeSocket(Netbridge)},
	} {
		if err := c.show(ctx, args...); err != nil {
			_ = c.show(context.WithoutCancel(ctx), "kubectl", "describe", "pods", "--selector=app in (in-cluster, on-nomad)")
			return err
		}
	}
	return nil
}

// show runs one of the user's tools and says so, in the form in which the user
// would type it.
func (c *Cluster) show(ctx context.Context, args ...string) error {
	path, err := c.find(args[0])
	if err != nil {
		return err
	}
	c.say("\n$ %s", strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Env = append(cleanEnv(), "KUBECONFIG="+c.KubeconfigFile(), "NOMAD_ADDR="+c.NomadAddress(), "NOMAD_CLI_SHOW_HINTS=false")
	cmd.Stdout, cmd.Stderr = c.opts.Out, c.opts.Out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// showConsole waits for the VM to say that it is up: Running, as Nomad has it,
// is the emulator's state, and the guest boots for some seconds more.
func (c *Cluster) showConsole(ctx context.Context) error {
	path, err := c.find("kubectl")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	line := ""
	err = poll(ctx, time.Second, func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, path, "--kubeconfig="+c.KubeconfigFile(), "logs", "hello-vm")
		cmd.Env = os.Environ()
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("kubectl logs hello-vm: %w: %s", err, out)
		}
		at := strings.Index(string(out), "demo-vm is up")
		if at < 0 {
			return fmt.Errorf("the VM's console does not say yet that it is up:\n%s", out)
		}
		line, _, _ = strings.Cut(string(out)[at:], "\n")
		return nil
	})
	if err != nil {
		return err
	}
	c.say("\n$ kubectl logs hello-vm\n%s", strings.TrimSpace(line))
	return nil
}
