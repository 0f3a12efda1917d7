package devcluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
)

// onPremNetns is the real node's network namespace: with a pod network it is a
// machine of its own, which only the underlay connects to this one.
func (c *Cluster) onPremNetns() string {
	if !c.opts.PodNetwork {
		return ""
	}
	return c.onPremBridge()
}

// underlay is the wire between this machine, which has the first address, and the
// real node, which has the second.
func (c *Cluster) underlay() netip.Prefix { return netip.PrefixFrom(c.onPremSubnet().Addr(), 30) }

// underlayAddress is this machine's, by which the real node reaches the API server
// and Consul.
func (c *Cluster) underlayAddress() netip.Addr { return c.underlay().Addr().Next() }

func (c *Cluster) underlayDevice() string { return fmt.Sprintf("nkwire%d", c.opts.PortBase) }

// ip runs the program of that name.
func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, lookPath("ip"), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %s", strings.Join(args, " "), strings.TrimSpace(string(out)))
	}
	return nil
}

// makeUnderlay makes the real node's namespace and the wire, unless they are there.
func (c *Cluster) makeUnderlay(ctx context.Context) error {
	if hasDevice(c.underlayDevice()) {
		return nil
	}
	if err := alone(ctx); err != nil {
		return err
	}
	node, wire := c.onPremNetns(), c.underlayDevice()
	here, there := netip.PrefixFrom(c.underlayAddress(), 30), netip.PrefixFrom(c.onPremAddress(), 30)
	for _, line := range []string{
		"netns add " + node,
		"link add " + wire + " type veth peer name eth0 netns " + node,
		"address add " + here.String() + " dev " + wire,
		"link set " + wire + " up",
		"-n " + node + " link set lo up",
		"-n " + node + " address add " + there.String() + " dev eth0",
		"-n " + node + " link set eth0 up",
		"-n " + node + " route add default via " + here.Addr().String(),
	} {
		if err := ip(ctx, strings.Fields(line)...); err != nil {
			return fmt.Errorf("make the network of the real node: %w", err)
		}
	}
	return nil
}

// alone says whose pod network or Service proxy is here already.
func alone(ctx context.Context) error {
	if hasDevice(overlayDevice) {
		return fmt.Errorf("this machine is in a pod network already (device %s): end it first, with nomad-kubelet dev down or netbridge remove", overlayDevice)
	}
	tables, err := exec.CommandContext(ctx, lookPath("nft"), "list", "tables", "ip").Output()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	if strings.Contains(string(tables), "table ip kube-proxy\n") {
		return errors.New("a kube-proxy works on this machine already (nftables table ip kube-proxy): a second one would overwrite its rules")
	}
	return nil
}

// clearPodNetwork undoes what the pod network did to this machine.
func (c *Cluster) clearPodNetwork(ctx context.Context) error {
	if !c.opts.PodNetwork {
		return nil
	}
	var errs []error
	if exists(c.netbridgeConfig(Netbridge)) {
		out, err := c.netbridge(ctx, "remove", "--config", c.netbridgeConfig(Netbridge))
		if err != nil {
			errs = append(errs, err)
		} else if strings.Contains(string(out), "removed") {
			c.say("  removed this machine's part of the pod network")
		}
	}
	if c.opts.OnPremNode && hasDevice(c.underlayDevice()) {
		for _, family := range []string{"ip", "ip6"} {
			// kube-proxy's, which nobody else's were beside (see alone).
			_ = exec.CommandContext(ctx, lookPath("nft"), "delete", "table", family, "kube-proxy").Run()
		}
		errs = append(errs, ip(ctx, "link", "delete", c.underlayDevice()))
	}
	if exists(filepath.Join("/run/netns", c.onPremNetns())) {
		errs = append(errs, ip(ctx, "netns", "delete", c.onPremNetns()))
	}
	return errors.Join(errs...)
}

// inNode makes a command one of the real node's.
func (c *Cluster) inNode(cmd command) command {
	if ns := c.onPremNetns(); ns != "" {
		cmd.args = append([]string{"--net=/run/netns/" + ns, cmd.path}, cmd.args...)
		cmd.path = lookPath("nsenter")
	}
	return cmd
}
