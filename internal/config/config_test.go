package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestDefaults(t *testing.T) {
	c, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.LogLevel != "info" || c.LogFormat != "text" || c.OrphanGuard.Duration != 10*time.Minute || c.Kubelet.Port != 10250 {
		t.Errorf("%+v", c)
	}
	if le := c.LeaderElection; le.Disabled || le.Namespace != "kube-system" || le.Name != "nomad-kubelet" || le.LeaseDuration.Duration != 6*time.Second {
		t.Errorf("%+v", le)
	}
	if len(c.VirtualNodes) != 1 {
		t.Fatalf("%+v", c.VirtualNodes)
	}
	n := c.VirtualNodes[0]
	if n.Name != "nomad" || n.NodePool != "default" || n.Namespace != "default" || n.Network != translate.NetworkBridge ||
		n.PodsPerClient != 250 || n.UnreachableAfter.Duration != 40*time.Second || n.DefaultMemoryMB != 128 ||
		n.ClusterDomain != "cluster.local" || n.MemoryOversubscription != nil {
		t.Errorf("%+v", n)
	}
	taints := []corev1.Taint{{Key: "nomad-kubelet.io/provider", Value: "nomad", Effect: corev1.TaintEffectNoSchedule}}
	if !equality.Semantic.DeepEqual(*n.Taints, taints) {
		t.Errorf("taints %v", *n.Taints)
	}
	if len(n.Runtimes) != 2 || n.Runtimes[""].Driver != "docker" || n.Runtimes["nomad-vm"].Driver != "qemu" {
		t.Errorf("runtimes %v", n.Runtimes)
	}
	// What pods may take of their client has to be allowed by name.
	if !equality.Semantic.DeepEqual(n.HostAccess, translate.HostAccess{}) {
		t.Errorf("host access %+v", n.HostAccess)
	}
}

func TestGivenIsKept(t *testing.T) {
	c, err := load(t, `
cluster: prod1
kubeconfig: /k
logLevel: debug
logFormat: json
orphanGuard: 1h
nomad: {address: "https://n:4646", region: eu, tokenFile: /t}
leaderElection: {disabled: true, leaseDuration: 15s}
kubelet: {port: 11000, tlsCertFile: /c, tlsKeyFile: /k}
virtualNodes:
- name: a
  nodePool: gpu
  namespace: k8s
  network: host
  labels: {example.com/x: v}
  taints: []
  memoryOversubscription: false
  datacenters: [dc1]
  clusterDNS: ["10.0.0.10", "fd00::10"]
  hostAccess: {hostPaths: [/srv], privileged: true}
  companionImage: img
  runtimes:
    nomad-vm: {driver: qemu, config: {accelerator: kvm, machine_type: pc-q35-7.2}}
    mock: {driver: mock_driver, noLogs: true}
- name: b
  taints: [{key: k, effect: NoExecute}]
`)
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.VirtualNodes[0], c.VirtualNodes[1]
	if c.Cluster != "prod1" || c.OrphanGuard.Duration != time.Hour || !c.LeaderElection.Disabled || c.LeaderElection.LeaseDuration.Duration != 15*time.Second || c.Kubelet.Port != 11000 {
		t.Errorf("%+v", c)
	}
	if len(*a.Taints) != 0 || len(*b.Taints) != 1 || a.Network != translate.NetworkHost {
		t.Errorf("%+v %+v", a.Taints, b.Taints)
	}
	if len(a.Runtimes) != 3 || a.Runtimes["nomad-vm"].Config["accelerator"] != "kvm" || !a.Runtimes["mock"].NoLogs || a.Runtimes[""].Driver != "docker" {
		t.Errorf("runtimes %v", a.Runtimes)
	}
	p := Profile(a)
	if p.Name != "a" || p.Namespace != "k8s" || p.NodePool != "gpu" || p.Network != translate.NetworkHost || p.MemoryOversubscription ||
		p.MHzPerCore != DefaultMHzPerCore || !p.HostAccess.Privileged || len(p.ClusterDNS) != 2 || p.Datacenters[0] != "dc1" || p.CompanionImage != "img" {
		t.Errorf("profile %+v", p)
	}
	yes := true
	a.MemoryOversubscription = &yes
	if !Profile(a).MemoryOversubscription {
		t.Error("memory oversubscription is not carried")
	}
}

func TestErrors(t *testing.T) {
	node := func(rest string) string { return "virtualNodes:\n- name: a\n  " + rest }
	for _, r := range []struct{ text, want string }{
		{"nonsense: 1", `unknown field "nonsense"`},
		{"nomad: {token: secret}", `unknown field "nomad.token"`},
		{"loglevel: info", `unknown field "loglevel"`},
		{node("hostAccess: {root: true}"), `unknown field "virtualNodes[0].hostAccess.root"`},
		{"logLevel: info\nlogLevel: debug", `key "logLevel" already set`},
		{"logLevel: [", "yaml"},
		{"logLevel: 7", "logLevel"},
		{"orphanGuard: soon", "soon"},
		{"cluster: My-Cluster", `cluster: "My-Cluster" must be 1 to 20 characters of a-z and 0-9`},
		{"cluster: " + strings.Repeat("a", 21), "cluster: "},
		{"logLevel: loud", `logLevel: "loud" is none of trace, debug, info, warn, error`},
		{"logFormat: xml", `logFormat: "xml" is neither text nor json`},
		{"kubelet: {tlsCertFile: /c}", "kubelet: tlsCertFile and tlsKeyFile go together"},
		{"kubelet: {tlsKeyFile: /c}", "kubelet: tlsCertFile and tlsKeyFile go together"},
		{"kubelet: {port: -1}", "kubelet.port: -1 to -1"},
		{"kubelet: {port: 65535}\nvirtualNodes: [{name: a}, {name: b}]", "kubelet.port: 65535 to 65536"},
		{"orphanGuard: -1s", "orphanGuard: -1s is negative"},
		{"leaderElection: {leaseDuration: 10ms}", "leaderElection.leaseDuration: 10ms is less than 1s"},
		{"virtualNodes: [{nodePool: x}]", `virtualNodes[0].name: "":`},
		{"virtualNodes: [{name: Big_Name}]", `virtualNodes[0].name: "Big_Name":`},
		{"virtualNodes: [{name: a}, {name: a}]", `virtualNodes[1].name: "a" is used twice`},
		{node("network: overlay"), `virtualNodes[0].network: "overlay" is none of bridge, host, and cni/`},
		{node("network: cni/"), `virtualNodes[0].network: "cni/" is none of`},
		{node("runtimes: {x: {}}"), `virtualNodes[0].runtimes["x"].driver: is missing`},
		{node("runtimes: {x: {driver: qemu, config: {network: bridge}}}"), `virtualNodes[0].runtimes["x"].config.network: "bridge" is neither user nor tap`},
		{node("runtimes: {x: {driver: qemu, config: {machine_type: microvm}}}"), `virtualNodes[0].runtimes["x"].config.machine_type: "microvm" is neither pc, q35 nor`},
		{node("runtimes: {x: {driver: qemu, config: {machine_type: 7}}}"), `config.machine_type: "7" is neither`},
		{node("labels: {\"a b\": c}"), `virtualNodes[0].labels: key "a b":`},
		{node("labels: {a: \"b c\"}"), `virtualNodes[0].labels[a]: "b c":`},
		{node("podsPerClient: -1"), "virtualNodes[0].podsPerClient: -1 is negative"},
		{node("defaultMemoryMB: -1"), "virtualNodes[0].defaultMemoryMB: -1 is negative"},
		{node("unreachableAfter: -1s"), "virtualNodes[0].unreachableAfter: -1s is negative"},
		{node("clusterDNS: [dns]"), `virtualNodes[0].clusterDNS: "dns" is not an IP address`},
		{node("hostAccess: {hostPaths: [srv]}"), `virtualNodes[0].hostAccess: "srv" is not an absolute path`},
		{node("hostAccess: {hugePages: huge}"), `hostAccess.hugePages: "huge" is not an absolute path`},
		{node("hostAccess: {pciDevices: ['3b:00.0']}"), `hostAccess.pciDevices: "3b:00.0" is not a device's address`},
		{node("hostAccess: {imageCache: cache}"), `virtualNodes[0].hostAccess.imageCache: "cache" is not an absolute path`},
		{node("hostAccess: {imageCache: '/a:b'}"), `virtualNodes[0].hostAccess.imageCache: "/a:b" is not an absolute path`},
		{node("hostAccess: {imageCache: /}"), `virtualNodes[0].hostAccess.imageCache: "/" is not an absolute path`},
		{node("hostAccess: {imagePaths: [img]}"), `virtualNodes[0].hostAccess: "img" is not an absolute path`},
		{node("taints: [{key: \"a b\", effect: NoExecute}]"), `virtualNodes[0].taints: key "a b":`},
		{node("taints: [{key: k, effect: Never}]"), `virtualNodes[0].taints[k].effect: "Never" is none of`},
	} {
		_, err := load(t, r.text)
		if err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("%q: got %v, want %q", r.text, err, r.want)
		} else if !strings.Contains(err.Error(), "config.yaml") {
			t.Errorf("%q: %v does not name the file", r.text, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := load(t, "logLevel: loud\nlogFormat: xml\ncluster: X")
	for _, part := range []string{"logLevel", "logFormat", "cluster"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s is not in %v", part, err)
		}
	}
}
