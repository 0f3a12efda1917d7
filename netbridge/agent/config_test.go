package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestSmallestConfigurations(t *testing.T) {
	c, err := load(t, "node: {kind: nomad}")
	if err != nil {
		t.Fatal(err)
	}
	if c.Fabric != "default" || c.Device != "nb0" || c.CNI.Bridge != "nbr0" || c.CNI.ConfigDir != "/opt/cni/config" || c.Node.Blocks != 1 {
		t.Errorf("%+v", c)
	}
	if _, err := load(t, "node: {kind: k8s, id: 6f1d, podCIDRs: [10.244.1.0/24]}"); err != nil {
		t.Error(err)
	}
	if c, err := load(t, "node: {kind: k8s, name: a}\nkubernetes: {kubeconfig: /etc/k}"); err != nil || c.Node.Name != "a" || c.Kubernetes.Kubeconfig != "/etc/k" {
		t.Errorf("%+v %v", c, err)
	}
}

func TestTheNodesNameComesFromTheEnvironment(t *testing.T) {
	t.Setenv(nodeNameEnv, "worker-1")
	for text, want := range map[string]string{
		"node: {kind: k8s}":                                      "worker-1",
		"node: {kind: k8s, name: own}":                           "own",
		"node: {kind: k8s, id: 6f1d, podCIDRs: [10.244.1.0/24]}": "",
		"node: {kind: nomad}":                                    "",
	} {
		if c, err := load(t, text); err != nil || c.Node.Name != want {
			t.Errorf("%s: want %q, got %+v %v", text, want, c, err)
		}
	}
}

func TestWrongKeysAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"node: {kind: vm}": `node.kind: "vm" is neither nomad nor k8s`,
		"node: {kind: k8s, podCIDRs: [10.244.1.0/24]}":               "node.name: give the Node's name",
		"node: {kind: k8s, id: a}":                                   "node.podCIDRs: with node.id nobody is asked",
		"node: {kind: k8s, id: a, name: b, podCIDRs: [1.0.0.0/8]}":   "node.id: the API server tells",
		"node: {kind: nomad, name: b}":                               "node.name: a Nomad client's ID",
		"node: {kind: nomad, podCIDRs: [10.244.1.0/24]}":             "node.podCIDRs: a Nomad client claims",
		"node: {kind: nomad, endpoint: here}":                        `node.endpoint: "here" is no IPv4 address`,
		"node: {kind: nomad, blocks: -1}":                            "node.blocks: -1",
		"node: {kind: nomad}\ndevice: a-name-that-is-too-long":       "device: ",
		"node: {kind: nomad}\ndns: {address: \"fe80::1\"}":           "dns.address: fe80::1 is no IPv4",
		"node: {kind: k8s}\ndns: {address: 169.254.20.53}":           "dns.address: a Kubernetes node's",
		"node: {kind: nomad}\ndns: {upstream: [192.0.2.1]}":          `dns: "192.0.2.1" is no address with a port`,
		"node: {kind: nomad}\nmetricsAddress: 9477":                  "metricsAddress",
		"node: {kind: nomad}\nwatch: {parts: 4}":                     "watch.parts: 4 is neither 1 nor 16",
		"node: {kind: nomad, id: machine}\nwatch: {parts: 16}":       `watch.parts: node ID "nomad/machine"`,
		"node: {kind: nomad}\nFabric: other":                         `unknown field "Fabric"`,
		"node: {kind: nomad, pods: 3}":                               `unknown field "node.pods"`,
		"node: {kind: nomad}\nfabric: a/b":                           "fabric: ",
		"node: {kind: k8s, id: a, podCIDRs: [10.244.1.0]}":           "10.244.1.0",
		"node: {kind: nomad}\nconsul: {address: a, adress: b}":       `unknown field "consul.adress"`,
		"node: {kind: k8s, id: a, podCIDRs: [1.0.0.0/8], blocks: 2}": "node.blocks: only a Nomad client",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", text, want, err)
		}
	}
}
