package devcluster

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func hasDevice(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// makeBridge makes a bridge with an address of this machine, unless it exists.
func makeBridge(ctx context.Context, name string, address netip.Prefix) error {
	if hasDevice(name) {
		return nil
	}
	// Without a MAC of its own a bridge takes a port's, and another when that pod goes:
	// what others have remembered of it then leads nowhere.
	sum := sha256.Sum256([]byte(name))
	mac := net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
	for _, args := range [][]string{
		{"link", "add", name, "address", mac.String(), "type", "bridge"},
		{"address", "add", address.String(), "dev", name},
		{"link", "set", name, "up"},
	} {
		if out, err := exec.CommandContext(ctx, lookPath("ip"), args...).CombinedOutput(); err != nil {
			return fmt.Errorf("make bridge %s: ip %s: %s", name, strings.Join(args, " "), strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// makePodBridge makes the pods' bridge as Nomad would with the first pod (CNI's
// bridge plugin takes one that is there): the virtual nodes' kubelet API listens
// on its address from the beginning.
func (c *Cluster) makePodBridge(ctx context.Context) error {
	subnet := netip.MustParsePrefix(c.podSubnet())
	return makeBridge(ctx, c.bridge(), netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits()))
}

// nodeIP is this machine's address on the pods' bridge, which only they and this
// machine reach. It is the virtual nodes' since an API server proxies to none on
// loopback (pkg/registry/core/node/strategy.go, isProxyableHostname).
func (c *Cluster) nodeIP() string { return netip.MustParsePrefix(c.podSubnet()).Addr().Next().String() }

// KubeletAddress is where the first virtual node's kubelet API listens in a
// cluster with its own control plane.
func (c *Cluster) KubeletAddress() string {
	return net.JoinHostPort(c.nodeIP(), strconv.Itoa(c.Ports.Kubelet))
}

// clearNetwork removes the pods' bridge, the addresses they held, and the
// firewall rules that CNI made for them. Chains that all pods of a machine
// share go only when nothing uses them any more.
func (c *Cluster) clearNetwork() error {
	_, subnet, err := net.ParseCIDR(c.podSubnet())
	if err != nil {
		return err
	}
	held, _ := os.ReadDir("/var/run/cni/nomad")
	for _, e := range held {
		if ip := net.ParseIP(e.Name()); ip != nil && subnet.Contains(ip) {
			os.Remove(filepath.Join("/var/run/cni/nomad", e.Name()))
		}
	}
	if err := c.deleteBridge(c.bridge()); err != nil {
		return err
	}
	c.clearFirewall(subnet)
	return nil
}

func (c *Cluster) deleteBridge(name string) error {
	if !hasDevice(name) {
		return nil
	}
	if out, err := exec.Command(lookPath("ip"), "link", "delete", name).CombinedOutput(); err != nil {
		return fmt.Errorf("delete bridge %s: %s", name, strings.TrimSpace(string(out)))
	}
	c.say("  removed bridge %s", name)
	return nil
}

// clearFirewall removes the rules that CNI made for the pods of a subnet.
func (c *Cluster) clearFirewall(subnet *net.IPNet) {
	n := 0
	alone := len(otherClusters(c.opts.Dir)) == 0
	for _, table := range []string{"nat", "filter"} {
		save, err := exec.Command(lookPath("iptables-save"), "-t", table).Output()
		if err != nil {
			return // no iptables, so no rules either
		}
		for _, args := range obsoleteRules(string(save), subnet, alone) {
			if exec.Command(lookPath("iptables"), append([]string{"-w", "-t", table}, args...)...).Run() == nil {
				n++
			}
		}
	}
	if n > 0 {
		c.say("  removed %d firewall rules and chains", n)
	}
}

var (
	ruleWord = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\S+`)
	address  = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)
)

// sharedChains are made once for all pods of a machine, by CNI's firewall and
// portmap plugins and by Nomad.
var sharedChains = []string{"CNI-FORWARD", "NOMAD-ADMIN", "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK", "CNI-ADMIN"}

// obsoleteRules tells which arguments of iptables undo, in order, what a table
// holds of the pods of a subnet; alone says that the shared chains may go, too,
// unless other pods have rules in them.
func obsoleteRules(save string, subnet *net.IPNet, alone bool) [][]string {
	type rule struct {
		chain string
		words []string
	}
	var rules []rule
	var chains []string
	for _, line := range strings.Split(save, "\n") {
		if name, ok := strings.CutPrefix(line, ":"); ok {
			chains = append(chains, strings.Fields(name)[0])
		}
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		words := ruleWord.FindAllString(line, -1)
		for i, w := range words {
			if strings.HasPrefix(w, `"`) {
				words[i] = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(w[1 : len(w)-1])
			}
		}
		rules = append(rules, rule{words[1], words})
	}
	ofPods := func(r rule) bool {
		for _, a := range address.FindAllString(strings.Join(r.words, " "), -1) {
			if ip := net.ParseIP(a); ip != nil && subnet.Contains(ip) {
				return true
			}
		}
		return false
	}
	isShared := func(chain string) bool { return slices.Contains(sharedChains, chain) }

	// A pod's own chain is known by the pod's address in one of its rules.
	doomed := map[string]bool{}
	for _, r := range rules {
		if strings.HasPrefix(r.chain, "CNI-") && !isShared(r.chain) && ofPods(r) {
			doomed[r.chain] = true
		}
	}
	target := func(r rule) string {
		for i, w := range r.words[:len(r.words)-1] {
			if w == "-j" {
				return r.words[i+1]
			}
		}
		return ""
	}
	var undo, drop [][]string
	left := map[string]int{}
	for _, r := range rules {
		switch {
		case doomed[r.chain]:
		case doomed[target(r)], ofPods(r):
			undo = append(undo, append([]string{"-D"}, r.words[1:]...))
		default:
			left[r.chain]++
		}
	}
	for chain := range doomed {
		undo = append(undo, []string{"-F", chain})
		drop = append(drop, []string{"-X", chain})
	}
	undo = append(undo, drop...)
	if !alone || sharedInUse(left) {
		return undo
	}
	// Nobody's pods are left: the frame goes, too.
	drop = nil
	for _, r := range rules {
		if isShared(target(r)) && !doomed[r.chain] {
			undo = append(undo, append([]string{"-D"}, r.words[1:]...))
		}
	}
	for _, chain := range chains {
		if isShared(chain) {
			undo = append(undo, []string{"-F", chain})
			drop = append(drop, []string{"-X", chain})
		}
	}
	return append(undo, drop...)
}

// sharedInUse tells whether other pods have rules: beyond the jump to
// NOMAD-ADMIN in CNI-FORWARD, and the one rule that each MASQ and SETMARK has.
func sharedInUse(left map[string]int) bool {
	return left["CNI-FORWARD"] > 1 || left["NOMAD-ADMIN"] > 0 || left["CNI-HOSTPORT-DNAT"] > 0
}
