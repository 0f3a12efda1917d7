package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// calicoPools is the set of all Calico's IPPools, disabled ones among them
// (felix/rules/rule_defs.go, IPSetIDNATOutgoingAllPools).
const calicoPools = "cali40all-ipam-pools"

// cluster is the network of the cluster's own pods, as a Kubernetes node has it.
type cluster struct {
	// file and types are the first configuration of the directory, which is the one
	// that runtimes take, and its plugins.
	file  string
	types []string
	err   error
	// flannel is its subnet.env.
	flannel map[string]string
	// pools are Calico's; nil where they are not seen.
	pools []netip.Prefix
}

func lookCluster(dir, flannelEnv string) cluster {
	var c cluster
	c.file, c.types, c.err = plugins(dir)
	if data, err := os.ReadFile(flannelEnv); err == nil {
		c.flannel = map[string]string{}
		for line := range strings.Lines(string(data)) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				c.flannel[k] = v
			}
		}
	}
	if set, err := netlink.IpsetList(calicoPools); err == nil {
		for _, e := range set.Entries {
			if a, ok := netip.AddrFromSlice(e.IP); ok {
				c.pools = append(c.pools, netip.PrefixFrom(a.Unmap(), int(e.CIDR)))
			}
		}
	}
	return c
}

// plugins reads the first configuration by name, as container runtimes do
// (containernetworking/cni, libcni, ConfFiles).
func plugins(dir string) (file string, types []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries { // sorted by name
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		file = filepath.Join(dir, e.Name())
		data, err := os.ReadFile(file)
		if err != nil {
			return file, nil, err
		}
		type plugin struct {
			Type string `json:"type"`
		}
		var conf struct {
			plugin
			Plugins []plugin `json:"plugins"`
		}
		if err := json.Unmarshal(data, &conf); err != nil {
			return file, nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, p := range append(conf.Plugins, conf.plugin) {
			if p.Type != "" {
				types = append(types, p.Type)
			}
		}
		return file, types, nil
	}
	return "", nil, errors.New("no network in " + dir)
}

func calico(device string) bool { return strings.HasPrefix(device, "cali") || device == "vxlan.calico" }

func judgeCluster(c cluster, s *fabric.Settings, podCIDRs []netip.Prefix, h host) []report.Check {
	has := func(ok func(string) bool) bool {
		return slices.ContainsFunc(h.links, func(l link) bool { return ok(l.name) })
	}
	is := func(names ...string) bool {
		return slices.ContainsFunc(c.types, func(t string) bool { return slices.Contains(names, t) })
	}
	switch {
	case is("cilium-cni") || has(func(n string) bool { return n == "cilium_host" }):
		return judgeCilium(s)
	case is("calico") || has(calico):
		return judgeCalico(c, s, has(func(n string) bool { return n == "bpfin.cali" }))
	case is("flannel") || c.flannel != nil:
		return judgeFlannel(c, s, podCIDRs)
	case is("bridge", "ptp"):
		return []report.Check{{Where: atCluster, What: "plugin", Result: report.OK, Found: strings.Join(c.types, ", ") + " in " + c.file}}
	}
	found := "plugins " + strings.Join(c.types, ", ") + ", which are not known here"
	if c.err != nil {
		found = c.err.Error()
	}
	return []report.Check{{Where: atCluster, What: "plugin", Result: report.Unknown, Found: found,
		Breaks: "pods of this node must be routed by the host, and their packets pass its nftables", Remedy: "netbridge doctor with --cni-conf-dir; ip route get an address of burstCIDR from a pod's"}}
}

// judgePodAddresses compares what the node announces with what its pods have, where
// the host's routes show it: a /32 by each pod's device, as Calico and other plugins
// make them, and Cilium's own address, which is of the range that it has for the node.
func judgePodAddresses(podCIDRs []netip.Prefix, h host) []report.Check {
	var pods, astray []netip.Addr
	for _, r := range h.routes {
		if l, ok := h.link(r.dev); ok && l.kind == "veth" && len(l.addrs) == 0 && r.dst.IsSingleIP() {
			pods = append(pods, r.dst.Addr())
		}
	}
	if l, ok := h.link("cilium_host"); ok {
		for _, a := range l.addrs {
			pods = append(pods, a.Addr())
		}
	}
	for _, a := range pods {
		if !slices.ContainsFunc(podCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			astray = append(astray, a)
		}
	}
	const what = "pods' addresses"
	switch {
	case len(pods) == 0 || len(podCIDRs) == 0:
		return nil
	case len(astray) == 0:
		return []report.Check{{Where: atCluster, What: what, Result: report.OK, Found: "within " + some(podCIDRs)}}
	}
	return []report.Check{{Where: atCluster, What: what, Result: report.Fail, Found: some(astray) + ", not within " + some(podCIDRs) + ", which this node announces",
		Breaks: "pods here with such addresses are not reached from Nomad: their network has an allocation of its own and does not look at spec.podCIDRs",
		Remedy: "Calico: IPAM host-local with \"subnet\": \"usePodCidr\"; Cilium: helm upgrade cilium cilium/cilium -n kube-system --reuse-values --set ipam.mode=kubernetes, on a new cluster;\n" +
			"or node.podCIDRs: the ranges that this node's pods have, where these do not change"}}
}

func judgeFlannel(c cluster, s *fabric.Settings, podCIDRs []netip.Prefix) []report.Check {
	r := report.Report{}
	r.OK(atCluster, "plugin", "flannel")
	network, err := netip.ParsePrefix(c.flannel["FLANNEL_NETWORK"])
	if err != nil || s == nil {
		return r.Checks
	}
	what := "flannel's network " + network.String()
	if slices.ContainsFunc(s.ClusterCIDRs, func(o netip.Prefix) bool { return o.Bits() <= network.Bits() && o.Contains(network.Addr()) }) {
		r.OK(atCluster, what, "within clusterCIDRs")
	} else {
		r.Add(report.Check{Where: atCluster, What: what, Result: report.Fail, Found: "not within clusterCIDRs " + some(s.ClusterCIDRs),
			Breaks: "the cluster's pods are not reached from Nomad, and seen under their nodes' addresses", Remedy: "clusterCIDRs: [" + network.String() + "] in the fabric's settings (netbridge fabric set)"})
	}
	// The bridge's address and the range, such as 10.244.1.1/24.
	subnet, err := netip.ParsePrefix(c.flannel["FLANNEL_SUBNET"])
	if err == nil && len(podCIDRs) > 0 && !slices.Contains(podCIDRs, subnet.Masked()) {
		r.Add(report.Check{Where: atCluster, What: "flannel's subnet", Result: report.Fail, Found: subnet.Masked().String() + ", not " + some(podCIDRs),
			Breaks: "this node announces addresses that its pods do not have", Remedy: "node.podCIDRs: [" + subnet.Masked().String() + "]"})
	}
	return r.Checks
}

// calicoYAML are pools that keep Calico from masquerading what goes to the fabric's
// ranges (projectcalico/calico, issue 7446), and its BIRD from announcing the
// routes to them that it learns from the kernel.
const calicoYAML = `kubectl apply -f - <<'EOF'
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: netbridge-burst}
spec: {cidr: %s, disabled: true, disableBGPExport: true, natOutgoing: false, ipipMode: Never, vxlanMode: Never, nodeSelector: all()}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: netbridge-hosts}
spec: {cidr: %s, disabled: true, disableBGPExport: true, natOutgoing: false, ipipMode: Never, vxlanMode: Never, nodeSelector: all()}
EOF`

func judgeCalico(c cluster, s *fabric.Settings, ebpf bool) []report.Check {
	r := report.Report{}
	r.OK(atCluster, "plugin", "Calico, with which netbridge is not tested")
	if ebpf {
		r.Add(report.Check{Where: atCluster, What: "Calico's data plane", Result: report.Warn, Found: "eBPF", Breaks: "its packets go past the rules that keep sources",
			Remedy: `kubectl patch installation default --type merge -p '{"spec":{"calicoNetwork":{"linuxDataplane":"Iptables"}}}'`})
	}
	if s == nil {
		return r.Checks
	}
	check := report.Check{Where: atCluster, What: "Calico's IPPools", Result: report.OK, Found: "have burstCIDR and hostCIDR",
		Breaks: "pods' packets to Nomad may carry their node's address, in the eBPF data plane do",
		Remedy: fmt.Sprintf(calicoYAML, s.BurstCIDR, s.HostCIDR)}
	var lacks []string
	for _, p := range []netip.Prefix{s.BurstCIDR, s.HostCIDR} {
		if !slices.ContainsFunc(c.pools, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }) {
			lacks = append(lacks, p.String())
		}
	}
	switch {
	case c.pools == nil:
		check.Result, check.Found = report.Unknown, "not seen from here"
		check.Remedy = "kubectl get ippools.crd.projectcalico.org; where burstCIDR and hostCIDR are missing:\n" + check.Remedy
	case len(lacks) > 0:
		check.Result, check.Found = report.Warn, "none has "+strings.Join(lacks, " and ")
	default:
		check.Breaks, check.Remedy = "", ""
	}
	return append(r.Checks, check)
}

// judgeCilium cannot see Cilium's settings, which are in its own pods.
func judgeCilium(s *fabric.Settings) []report.Check {
	ranges := "burstCIDR and hostCIDR"
	if s != nil {
		ranges = some([]netip.Prefix{s.BurstCIDR, s.HostCIDR})
	}
	return []report.Check{{Where: atCluster, What: "plugin", Result: report.Warn, Found: "Cilium, with which netbridge is not tested; its settings are not seen from here",
		Breaks: "with BPF host routing, pods' packets go past this host's rules, and BPF masquerading puts the node's address into those to " + ranges,
		Remedy: "helm upgrade cilium cilium/cilium -n kube-system --reuse-values --set bpf.hostLegacyRouting=true --set bpf.masquerade=false\n" +
			"Cilium's VTEP feature is no way round: its VNI is 2, with one mask for all ranges, and each client's address and MAC in its settings"}}
}
