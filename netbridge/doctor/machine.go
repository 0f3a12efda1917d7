package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// machine is what the agent needs of the kernel and of programs.
type machine struct {
	// nft is what the program calls itself; empty if it is not there.
	nft string
	// rights is what came of the first call that takes them.
	rights error
	// forward are base chains at the forward hook whose policy drops, other than
	// iptables' own.
	forward []string
	// iptables says that the program is there, drops that its FORWARD chain drops, as
	// nftables shows it or the program does.
	iptables, drops bool
	// vxlan is what came of making a device; tried is false with another backend.
	vxlan error
	tried bool
	// forwarding is net.ipv4.ip_forward, and the device's own.
	forwarding []string
	// strict is the underlay's device if its rp_filter is strict; astray are endpoints
	// of peers that the machine reaches by another one.
	strict string
	astray []netip.Addr
	// kubeProxy says that its rules are there, bridged is br_netfilter's setting, empty
	// without the module.
	kubeProxy bool
	bridged   string
}

func lookMachine(device string, n node) machine {
	m := machine{forwarding: []string{sysctl("net/ipv4/ip_forward")}, bridged: sysctl("net/bridge/bridge-nf-call-iptables")}
	if v := sysctl("net/ipv4/conf", device, "forwarding"); v != "" {
		m.forwarding = append(m.forwarding, v)
	}
	if out, err := exec.Command("nft", "--version").Output(); err == nil {
		m.nft = strings.TrimSpace(string(out))
	}
	m.lookChains()
	if m.rights == nil {
		m.lookIptables()
		if n.settings == nil || n.settings.Backend == fabric.BackendVXLAN {
			m.tried, m.vxlan = true, tryVXLAN()
		}
	}
	m.lookReversePath(n)
	return m
}

// lookChains reads nftables, where kube-proxy and iptables-nft write, too.
func (m *machine) lookChains() {
	c, err := nftables.New()
	if err != nil {
		m.rights = err
		return
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	inet, inetErr := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if m.rights = errors.Join(err, inetErr); m.rights != nil {
		return
	}
	for _, ch := range append(chains, inet...) {
		m.kubeProxy = m.kubeProxy || ch.Table.Name == "kube-proxy" || ch.Name == "KUBE-SERVICES"
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if ch.Table.Family == nftables.TableFamilyIPv4 && ch.Table.Name == "filter" && ch.Name == "FORWARD" {
			m.drops = true
			continue
		}
		m.forward = append(m.forward, ch.Table.Name+" "+ch.Name)
	}
}

// lookIptables asks the program, which may be the legacy one, that nftables does not
// show.
func (m *machine) lookIptables() {
	if _, err := exec.LookPath("iptables"); err != nil {
		return
	}
	m.iptables = true
	ipt, err := iptables.New(iptables.Timeout(5))
	if err != nil {
		return
	}
	if rules, err := ipt.List("filter", "FORWARD"); err == nil {
		m.drops = m.drops || slices.ContainsFunc(rules, func(r string) bool { return strings.HasPrefix(r, "-P FORWARD") && !strings.HasSuffix(r, "ACCEPT") })
	}
	if nat, err := ipt.ListChains("nat"); err == nil {
		m.kubeProxy = m.kubeProxy || slices.Contains(nat, "KUBE-SERVICES")
	}
}

// tryVXLAN makes a device and removes it. One that is never set up opens no socket.
func tryVXLAN() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("nbd%d", os.Getpid())
	l := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1<<24 - 1, Port: 65535}
	if err := netlink.LinkAdd(l); err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// lookReversePath looks whether the way to a peer is the way from it. The kernel
// takes the stricter of the two settings (Documentation/networking/ip-sysctl.rst).
func (m *machine) lookReversePath(n node) {
	links, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil || !n.endpoint.IsValid() {
		return
	}
	index := 0
	for _, a := range links {
		if a.IP.Equal(n.endpoint.AsSlice()) {
			index = a.LinkIndex
		}
	}
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return
	}
	if max(number(sysctl("net/ipv4/conf/all/rp_filter")), number(sysctl("net/ipv4/conf", l.Attrs().Name, "rp_filter"))) != 1 {
		return
	}
	m.strict = l.Attrs().Name
	if n.last == nil {
		return
	}
	for _, p := range n.last.Peers {
		routes, err := netlink.RouteGet(p.Endpoint.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].LinkIndex != index {
			m.astray = append(m.astray, p.Endpoint)
		}
	}
	slices.SortFunc(m.astray, netip.Addr.Compare)
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

var nftVersion = regexp.MustCompile(`v(\d+)\.(\d+)\.(\d+)`)

// tooOld says that it is before 1.0.1, in which the rules cannot be written.
func tooOld(version string) bool {
	v := nftVersion.FindStringSubmatch(version)
	return v != nil && number(v[1])*1e6+number(v[2])*1e3+number(v[3]) < 1_000_001
}

// judgeMachine takes made for whether the agent has set the machine up already.
func judgeMachine(m machine, made bool, kind string) []report.Check {
	var r report.Report
	switch {
	case m.rights == nil:
		r.OK(atMachine, "rights", "may change the network")
	case errors.Is(m.rights, syscall.EPERM):
		r.Add(report.Check{Where: atMachine, What: "rights", Result: report.Fail, Found: "not root: " + m.rights.Error(),
			Breaks: "the agent can set up nothing", Remedy: "run it as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN"})
	default:
		r.Add(report.Check{Where: atMachine, What: "rights", Result: report.Fail, Found: "nftables: " + m.rights.Error(),
			Breaks: "the agent keeps no sources and lets nobody in", Remedy: "modprobe nf_tables; zgrep NF_TABLES /proc/config.gz"})
	}
	r.Add(judgeNFT(m.nft))
	r.Add(judgeForward(m)...)
	if m.tried {
		r.Add(judgeVXLAN(m.vxlan))
	}
	r.Add(judgeForwarding(m.forwarding, made))
	r.Add(judgeReversePath(m)...)
	if kind == fabric.KindNomad && m.kubeProxy {
		r.Add(judgeBridged(m.bridged))
	}
	return r.Checks
}

func judgeNFT(version string) report.Check {
	const remedy = "apt-get install nftables (1.0.1 or later)"
	switch {
	case version == "":
		return report.Check{Where: atMachine, What: "nft", Result: report.Fail, Found: "not there", Breaks: "the agent does not start", Remedy: remedy}
	case tooOld(version):
		return report.Check{Where: atMachine, What: "nft", Result: report.Fail, Found: version, Breaks: "the agent's rules cannot be written", Remedy: remedy}
	}
	return report.Check{Where: atMachine, What: "nft", Result: report.OK, Found: version}
}

func judgeForward(m machine) []report.Check {
	const what = "forwarded packets"
	var r report.Report
	switch {
	case m.drops && !m.iptables:
		r.Add(report.Check{Where: atMachine, What: what, Result: report.Fail, Found: "iptables' FORWARD chain drops, and there is no iptables to add to it",
			Breaks: "no packet passes between pods and the overlay", Remedy: "apt-get install iptables, or: nft chain ip filter FORWARD '{ policy accept; }'"})
	case m.drops:
		r.OK(atMachine, what, "iptables' FORWARD chain drops; the agent adds its accepts")
	case len(m.forward) == 0:
		r.OK(atMachine, what, "not dropped by a chain's policy")
	}
	for _, c := range m.forward {
		r.Add(report.Check{Where: atMachine, What: what, Result: report.Warn, Found: "nftables chain " + c + " drops what no rule of its accepts",
			Breaks: "packets between pods and the overlay, unless it accepts them; an accept in another table does not help",
			Remedy: "accept iifname and oifname of the overlay's device and of the pods' bridge in that chain (firewalld: put both into the zone trusted)"})
	}
	return r.Checks
}

func judgeVXLAN(err error) report.Check {
	if err == nil {
		return report.Check{Where: atMachine, What: "VXLAN", Result: report.OK, Found: "a device can be made"}
	}
	return report.Check{Where: atMachine, What: "VXLAN", Result: report.Fail, Found: "no device can be made: " + err.Error(),
		Breaks: "there is no overlay", Remedy: "modprobe vxlan && echo vxlan > /etc/modules-load.d/netbridge.conf"}
}

func judgeForwarding(values []string, made bool) report.Check {
	c := report.Check{Where: atMachine, What: "ip_forward", Result: report.OK, Found: "on"}
	if !slices.ContainsFunc(values, func(v string) bool { return v != "1" }) {
		return c
	}
	c.Found, c.Remedy = "off", "sysctl -w net.ipv4.ip_forward=1 && echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-netbridge.conf"
	c.Result, c.Breaks = report.Warn, "nothing, if nobody sets it again: the agent turns it on when it starts"
	if made {
		c.Result, c.Breaks = report.Fail, "no packet passes between pods and the overlay until the agent turns it on again, which it does every 10 s; somebody has turned it off"
	}
	return c
}

func judgeReversePath(m machine) []report.Check {
	switch {
	case m.strict == "":
		return []report.Check{{Where: atMachine, What: "rp_filter", Result: report.OK, Found: "not strict on the underlay"}}
	case len(m.astray) == 0:
		return []report.Check{{Where: atMachine, What: "rp_filter", Result: report.OK, Found: "strict on " + m.strict + ", by which the machine reaches its peers"}}
	}
	return []report.Check{{Where: atMachine, What: "rp_filter", Result: report.Fail,
		Found:  fmt.Sprintf("strict on %s, and the way to %s is another", m.strict, some(m.astray)),
		Breaks: "their packets are dropped", Remedy: "sysctl -w net.ipv4.conf.all.rp_filter=2, or route them by " + m.strict}}
}

// judgeBridged: an answer between two ports of one bridge goes past the connection
// tracking that the question went through, unless br_netfilter brings it there.
func judgeBridged(value string) report.Check {
	c := report.Check{Where: atMachine, What: "br_netfilter", Result: report.OK, Found: "on, for kube-proxy"}
	if value != "1" {
		c.Result, c.Found = report.Warn, "off, and kube-proxy's rules are there"
		c.Breaks = "a pod that calls a Service gets no answer from an endpoint on its own client"
		c.Remedy = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1"
	}
	return c
}

// some lists the first few.
func some[T fmt.Stringer](items []T) string {
	const most = 5
	var out []string
	for _, i := range items[:min(most, len(items))] {
		out = append(out, i.String())
	}
	if n := len(items) - most; n > 0 {
		out = append(out, fmt.Sprintf("%d more", n))
	}
	return strings.Join(out, ", ")
}

// judgeServers: a Service's address leads nowhere on a client without kube-proxy.
func judgeServers(s fabric.Settings, kubeProxy bool) []report.Check {
	const what = "dns.servers"
	var services []netip.Addr
	for _, a := range s.DNS.Servers {
		if s.ServiceCIDR.IsValid() && s.ServiceCIDR.Contains(a) {
			services = append(services, a)
		}
	}
	switch {
	case len(s.DNS.Servers) == 0:
		return nil
	case len(services) > 0 && !kubeProxy:
		return []report.Check{{Where: atFabric, What: what, Result: report.Fail, Found: "a Service's address, and kube-proxy's rules are not here: " + some(services),
			Breaks: "pods on this client do not get the cluster's names", Remedy: "nomad job run deploy/nomad/kube-proxy.nomad.hcl; or dns.servers: CoreDNS's pods (netbridge fabric set)"}}
	}
	return []report.Check{{Where: atFabric, What: what, Result: report.OK, Found: some(s.DNS.Servers)}}
}
