package devcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func (c *Cluster) consulAddress() string {
	return netip.AddrPortFrom(c.underlayAddress(), consulHTTP).String()
}

// consulCommand runs a server that only this machine and the real node reach.
func (c *Cluster) consulCommand() (command, error) {
	path, err := c.find("consul")
	if err != nil {
		return command{}, err
	}
	config, err := json.Marshal(map[string]any{
		"server": true, "bootstrap_expect": 1, "data_dir": filepath.Join(c.opts.Dir, "consul"), "node_name": "dev",
		"bind_addr": c.underlayAddress().String(), "client_addr": c.underlayAddress().String(),
		"ports":   map[string]any{"grpc": -1, "grpc_tls": -1, "http": consulHTTP, "dns": consulDNS},
		"connect": map[string]any{"enabled": false}, "disable_update_check": true, "log_level": "warn",
		"performance": map[string]any{"raft_multiplier": 1},
	})
	if err != nil {
		return command{}, err
	}
	file := filepath.Join(c.opts.Dir, "run", "consul.json")
	return command{path: path, args: []string{"agent", "-config-file=" + file}}, os.WriteFile(file, config, 0o600)
}

// setFabric writes the settings that all nodes of the pod network share.
func (c *Cluster) setFabric(ctx context.Context) error {
	settings, err := json.Marshal(map[string]any{
		"clusterCIDRs": []string{clusterCIDR}, "serviceCIDR": serviceCIDR, "burstCIDR": burstCIDR,
		"dns": map[string]any{"domain": clusterDomain, "servers": []string{c.onPremAddress().String()}},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(c.opts.Dir, "run", "fabric.json")
	if err := os.WriteFile(file, settings, 0o600); err != nil {
		return err
	}
	_, err = c.netbridge(ctx, "fabric", "set", "--consul-address", c.consulAddress(), "-f", file)
	return err
}

// netbridge runs the operator's tool.
func (c *Cluster) netbridge(ctx context.Context, args ...string) ([]byte, error) {
	path, err := c.find("netbridge")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = cleanEnv()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("netbridge %s: %s", strings.Join(args, " "), strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func (c *Cluster) netbridgeConfig(component string) string {
	return filepath.Join(c.opts.Dir, "run", component+".yaml")
}

func (c *Cluster) netbridgeSocket(component string) string {
	return filepath.Join(c.opts.shortDir(), component+".sock")
}

// netbridgeTokenFile is the token by which the agent asks Nomad, when ACL is set.
func (c *Cluster) netbridgeTokenFile() string { return filepath.Join(c.opts.Dir, "netbridge.token") }

// cniConfigDir is where the agent writes the network that Nomad's pods join.
func (c *Cluster) cniConfigDir() string { return filepath.Join(c.opts.Dir, "run", "cni") }

// netbridgeCommand runs the agent of this machine, which is the Nomad client's.
func (c *Cluster) netbridgeCommand() (command, error) {
	nomad := map[string]any{"address": c.NomadAddress()}
	if c.opts.ACL {
		nomad["tokenFile"] = c.netbridgeTokenFile()
	}
	return c.netbridgeAgent(Netbridge, map[string]any{
		"node":  map[string]any{"kind": "nomad", "endpoint": c.underlayAddress().String()},
		"nomad": nomad,
		"cni":   map[string]any{"configDir": c.cniConfigDir(), "hostPorts": true},
		"dns": map[string]any{"address": nodeLocalDNS,
			"consulAddress": netip.AddrPortFrom(c.underlayAddress(), consulDNS).String()},
	})
}

// onPremNetbridgeCommand runs the agent of the real node.
func (c *Cluster) onPremNetbridgeCommand() (command, error) {
	client, err := c.kubernetes()
	if err != nil {
		return command{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	node, err := client.CoreV1().Nodes().Get(ctx, OnPremNode, metav1.GetOptions{})
	if err != nil {
		return command{}, err
	}
	cmd, err := c.netbridgeAgent(OnPremNetbridge, map[string]any{
		"node": map[string]any{"kind": "k8s", "id": string(node.UID), "endpoint": c.onPremAddress().String(), "podCIDRs": []string{onPremPodCIDR}},
	})
	return c.inNode(cmd), err
}

func (c *Cluster) netbridgeAgent(component string, config map[string]any) (command, error) {
	path, err := c.find("netbridge")
	if err != nil {
		return command{}, err
	}
	config["consul"] = map[string]any{"address": c.consulAddress()}
	config["stateDir"] = filepath.Join(c.opts.Dir, component)
	config["socket"] = c.netbridgeSocket(component)
	config["metricsAddress"] = "none"
	data, err := yaml.Marshal(config)
	if err != nil {
		return command{}, err
	}
	file := c.netbridgeConfig(component)
	return command{path: path, args: []string{"agent", "--config", file}}, os.WriteFile(file, data, 0o644)
}

// netbridgeReady waits until the agent has its place in the network and all is as it
// should be.
func (c *Cluster) netbridgeReady(component string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := c.netbridge(ctx, "status", "--socket", c.netbridgeSocket(component), "-o", "json")
		if err != nil {
			return err
		}
		var st struct {
			Own        struct{ Host netip.Addr }
			Incomplete string
			Problems   map[string]string
			Drift      []string
		}
		if err := json.Unmarshal(out, &st); err != nil {
			return err
		}
		if !st.Own.Host.IsValid() || st.Incomplete != "" || len(st.Problems)+len(st.Drift) > 0 {
			return fmt.Errorf("not settled: %s %v %v", st.Incomplete, st.Problems, st.Drift)
		}
		return nil
	}
}
