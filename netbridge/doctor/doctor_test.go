package doctor

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

var (
	pfx  = netip.MustParsePrefix
	addr = netip.MustParseAddr
)

func settings() fabric.Settings {
	s := fabric.Settings{ClusterCIDRs: []netip.Prefix{pfx("10.244.0.0/16")}, ServiceCIDR: pfx("10.96.0.0/16")}
	s.Complete()
	return s
}

// expect wants exactly these checks not to be ok, as "result what", and each of them
// to say what breaks and what to do.
func expect(t *testing.T, name string, got []report.Check, want ...string) {
	t.Helper()
	var bad []string
	for _, c := range got {
		if c.Result == report.OK {
			continue
		}
		bad = append(bad, string(c.Result)+" "+c.What)
		if c.Found == "" || c.Breaks == "" || c.Remedy == "" {
			t.Errorf("%s: it does not say all: %+v", name, c)
		}
	}
	slices.Sort(bad)
	slices.Sort(want)
	if !slices.Equal(bad, want) {
		t.Errorf("%s: %q, want %q", name, bad, want)
	}
	if len(got) == 0 {
		t.Errorf("%s: nothing was judged", name)
	}
}

func TestMachine(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*machine)
		made   bool
		want   []string
	}{
		"healthy":                  {func(*machine) {}, true, nil},
		"no root":                  {func(m *machine) { m.rights = syscall.EPERM }, true, []string{"fail rights"}},
		"no nftables":              {func(m *machine) { m.rights = syscall.EINVAL }, true, []string{"fail rights"}},
		"no nft":                   {func(m *machine) { m.nft = "" }, true, []string{"fail nft"}},
		"old nft":                  {func(m *machine) { m.nft = "nftables v0.9.8 (E.D.S.)" }, true, []string{"fail nft"}},
		"nft 1.0.1":                {func(m *machine) { m.nft = "nftables v1.0.1 (Fearless)" }, true, nil},
		"Docker":                   {func(m *machine) { m.drops = true }, true, nil},
		"Docker without iptables":  {func(m *machine) { m.drops, m.iptables = true, false }, true, []string{"fail forwarded packets"}},
		"firewalld":                {func(m *machine) { m.forward = []string{"firewalld filter_FORWARD"} }, true, []string{"warn forwarded packets"}},
		"no VXLAN":                 {func(m *machine) { m.vxlan = syscall.EOPNOTSUPP }, true, []string{"fail VXLAN"}},
		"another backend":          {func(m *machine) { m.tried, m.vxlan = false, syscall.EOPNOTSUPP }, true, nil},
		"forwarding off":           {func(m *machine) { m.forwarding = []string{"0", "0"} }, true, []string{"fail ip_forward"}},
		"device does not forward":  {func(m *machine) { m.forwarding = []string{"1", "0"} }, true, []string{"fail ip_forward"}},
		"not on yet":               {func(m *machine) { m.forwarding = []string{"0"} }, false, []string{"warn ip_forward"}},
		"strict, one way":          {func(m *machine) { m.strict = "eth0" }, true, nil},
		"strict, another way":      {func(m *machine) { m.strict, m.astray = "eth0", []netip.Addr{addr("192.0.2.7")} }, true, []string{"fail rp_filter"}},
		"kube-proxy":               {func(m *machine) { m.kubeProxy = true }, true, []string{"warn br_netfilter"}},
		"kube-proxy, br_netfilter": {func(m *machine) { m.kubeProxy, m.bridged = true, "1" }, true, nil},
	} {
		m := machine{nft: "nftables v1.0.6 (Lester Gooch #5)", iptables: true, tried: true, forwarding: []string{"1", "1"}}
		c.change(&m)
		expect(t, name, judgeMachine(m, c.made, fabric.KindNomad), c.want...)
	}
}

func TestNameServers(t *testing.T) {
	s := settings()
	s.DNS.Servers = []netip.Addr{addr("10.244.1.5"), addr("10.96.0.10")}
	expect(t, "a Service, with kube-proxy", judgeServers(s, true))
	expect(t, "a Service, without", judgeServers(s, false), "fail dns.servers")
	s.DNS.Servers = s.DNS.Servers[:1]
	expect(t, "a pod", judgeServers(s, false))
}

func machineWith(links ...link) host {
	return host{links: append([]link{{name: "eth0", kind: "veth", mtu: 1500, addrs: []netip.Prefix{pfx("192.0.2.1/24")}}}, links...), sockets: map[int]bool{}}
}

func TestRanges(t *testing.T) {
	for name, c := range map[string]struct {
		h    host
		kind string
		want []string
	}{
		"healthy":               {machineWith(link{name: "docker0", addrs: []netip.Prefix{pfx("172.17.0.1/16")}}), fabric.KindNomad, nil},
		"own devices":           {machineWith(link{name: "nb0", addrs: []netip.Prefix{pfx("10.78.0.9/32")}}, link{name: "nbr0", addrs: []netip.Prefix{pfx("10.77.0.1/25")}}), fabric.KindNomad, nil},
		"docker0 in it":         {machineWith(link{name: "docker0", addrs: []netip.Prefix{pfx("10.77.5.1/24")}}), fabric.KindNomad, []string{"fail burstCIDR 10.77.0.0/16"}},
		"a VPN's route in it":   {host{routes: []route{{pfx("10.78.4.0/24"), "tun0"}}}, fabric.KindNomad, []string{"fail hostCIDR 10.78.0.0/20"}},
		"the same range":        {host{routes: []route{{pfx("10.77.0.0/16"), "tun0"}}}, fabric.KindNomad, []string{"fail burstCIDR 10.77.0.0/16"}},
		"Services":              {host{routes: []route{{pfx("10.96.3.0/24"), "tun0"}}}, fabric.KindNomad, []string{"fail serviceCIDR 10.96.0.0/16"}},
		"IPVS":                  {machineWith(link{name: "kube-ipvs0", addrs: []netip.Prefix{pfx("10.96.0.1/32")}}), fabric.KindK8s, nil},
		"a wider route":         {host{routes: []route{{pfx("10.76.0.0/15"), "tun0"}}}, fabric.KindNomad, []string{"warn burstCIDR 10.77.0.0/16"}},
		"flannel's own":         {host{routes: []route{{pfx("10.244.2.0/24"), "flannel.1"}}}, fabric.KindK8s, nil},
		"the cluster, on Nomad": {host{routes: []route{{pfx("10.244.2.0/24"), "tun0"}}}, fabric.KindNomad, []string{"fail clusterCIDRs 10.244.0.0/16"}},
	} {
		n := node{kind: c.kind, endpoint: addr("192.0.2.1")}
		expect(t, name, judgeRanges(settings(), n, []string{"nb0", "nbr0"}, c.h), c.want...)
	}
	n := node{kind: fabric.KindNomad, endpoint: addr("10.244.3.3")}
	expect(t, "endpoint inside", judgeRanges(settings(), n, nil, host{}), "fail endpoint outside the overlay")
}

func TestEndpoint(t *testing.T) {
	h := machineWith(link{name: "tun0", mtu: 1320, addrs: []netip.Prefix{pfx("198.51.100.1/24")}})
	expect(t, "healthy", judgeEndpoint(addr("192.0.2.1"), nil, h, overhead(nil)))
	expect(t, "no default route", judgeEndpoint(netip.Addr{}, errors.New("no default route"), h, overhead(nil)), "fail endpoint")
	expect(t, "somebody else's", judgeEndpoint(addr("192.0.2.2"), nil, h, overhead(nil)), "fail endpoint")
	expect(t, "narrow", judgeEndpoint(addr("198.51.100.1"), nil, h, overhead(nil)), "fail underlay MTU")
}

func TestDevices(t *testing.T) {
	n := node{kind: fabric.KindNomad, id: "nomad/a"}
	ours := link{name: "nb0", kind: "vxlan", mac: n.id.MAC().String(), vni: 20034, port: 8473}
	for name, c := range map[string]struct {
		h    host
		port int
		want []string
	}{
		"fresh":            {machineWith(), 8473, nil},
		"set up":           {host{links: []link{ours, {name: "nbr0", kind: "bridge", addrs: []netip.Prefix{pfx("10.77.1.1/25"), pfx("169.254.20.53/32")}}}, sockets: map[int]bool{8473: true}}, 8473, nil},
		"a dummy":          {machineWith(link{name: "nb0", kind: "dummy"}), 8473, []string{"fail device nb0"}},
		"another's VXLAN":  {machineWith(link{name: "nb0", kind: "vxlan", mac: "02:00:00:00:00:01", port: 8472}), 8473, []string{"fail device nb0"}},
		"another's bridge": {machineWith(link{name: "nbr0", kind: "bridge", addrs: []netip.Prefix{pfx("172.30.0.1/16")}}), 8473, []string{"fail bridge nbr0"}},
		"no bridge":        {machineWith(link{name: "nbr0", kind: "dummy"}), 8473, []string{"fail bridge nbr0"}},
		"flannel's port":   {machineWith(link{name: "flannel.1", kind: "vxlan", vni: 1, port: 8472}), 8472, []string{"fail UDP port 8472"}},
		"flannel beside":   {machineWith(ours, link{name: "flannel.1", kind: "vxlan", vni: 1, port: 8472}), 8473, nil},
		"a socket":         {host{sockets: map[int]bool{8473: true}}, 8473, []string{"fail UDP port 8473"}},
		"Calico's port":    {machineWith(link{name: "cali123", kind: "veth"}), 4789, []string{"fail UDP port 4789"}},
	} {
		s := settings()
		s.Port = c.port
		cfg := &agent.Config{Node: agent.Node{Kind: fabric.KindNomad}, DNS: agent.DNS{Address: addr("169.254.20.53")}}
		cfg.Complete()
		expect(t, name, judgeDevices(s, n, cfg, c.h), c.want...)
	}
}

func forbiddenBy(text string) error { return api.StatusError{Code: 403, Body: text} }

func TestConsul(t *testing.T) {
	s := settings()
	for name, c := range map[string]struct {
		change func(*consul)
		want   []string
	}{
		"healthy":     {func(*consul) {}, nil},
		"away":        {func(c *consul) { c.leaderErr = errors.New("connection refused") }, []string{"fail leader"}},
		"no leader":   {func(c *consul) { c.leader = "" }, []string{"fail leader"}},
		"wrong token": {func(c *consul) { c.settings, c.settingsErr = nil, forbiddenBy("ACL not found") }, []string{"fail token"}},
		"no settings": {func(c *consul) { c.settings, c.settingsErr = nil, registry.ErrNoSettings }, []string{"fail settings"}},
		"may not read": {func(c *consul) {
			c.settings, c.settingsErr = nil, forbiddenBy("Permission denied: token lacks permission 'key:read'")
		}, []string{"fail token reads"}},
		"lists cut":     {func(c *consul) { c.list.Incomplete = errors.New("the token may not read all of x") }, []string{"fail token reads"}},
		"claims cut":    {func(c *consul) { c.ownersErr = errors.New("list x: the token may not read all of it") }, []string{"fail token reads"}},
		"may not write": {func(c *consul) { c.denied = []string{"x"} }, []string{"fail token writes"}},
		"two clients":   {func(c *consul) { c.clients = []string{"_nomad-client-a", "_nomad-client-b"} }, []string{"warn Nomad clients"}},
		"one client":    {func(c *consul) { c.clients = []string{"_nomad-client-a"} }, nil},
	} {
		x := consul{fabric: "f", leader: "127.0.0.1:8300", settings: &s}
		c.change(&x)
		expect(t, name, judgeConsul(x, node{kind: fabric.KindNomad, id: "nomad/a"}), c.want...)
	}
}

func record(n byte, cidr string) fabric.Node {
	return fabric.Node{Version: 1, CIDRs: []netip.Prefix{pfx(cidr)}, Host: netip.AddrFrom4([4]byte{10, 78, 0, n}), Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, n}), MTU: 1450}
}

func TestRecords(t *testing.T) {
	s := settings()
	own := record(1, "10.77.1.0/25")
	for name, c := range map[string]struct {
		change func(*consul, *node)
		want   []string
	}{
		"healthy": {func(*consul, *node) {}, nil},
		"never ran": {func(c *consul, n *node) {
			delete(c.list.Nodes, n.id)
			c.list.Incomplete, n.last = registry.ErrNoRecord, nil
		}, nil},
		"record lost":   {func(c *consul, n *node) { delete(c.list.Nodes, n.id); c.list.Incomplete = registry.ErrNoRecord }, []string{"fail list of nodes"}},
		"store emptied": {func(c *consul, _ *node) { c.list.Incomplete = errors.New("nodes/.keep is missing") }, []string{"fail list of nodes"}},
		"block stolen":  {func(c *consul, _ *node) { c.blocks[own.CIDRs[0]] = "nomad/thief" }, []string{"fail own claims"}},
		"host stolen":   {func(c *consul, _ *node) { c.hosts[own.Host] = "nomad/thief" }, []string{"fail own claims"}},
		"another's range": {func(c *consul, n *node) {
			n.last.Peers["nomad/b"] = record(2, "10.77.1.0/25")
			c.list.Nodes["nomad/b"] = n.last.Peers["nomad/b"]
		}, []string{"fail own record"}},
		"a peer's record": {func(c *consul, _ *node) { c.list.Nodes["nomad/c"] = record(3, "10.244.0.0/25") }, []string{"warn record of nomad/c"}},
	} {
		n := node{kind: fabric.KindNomad, id: "nomad/a", last: &peers.State{Own: own, Peers: map[fabric.ID]fabric.Node{}}}
		x := consul{fabric: "f", settings: &s, blocks: map[netip.Prefix]fabric.ID{own.CIDRs[0]: n.id}, hosts: map[netip.Addr]fabric.ID{own.Host: n.id},
			list: registry.List{Nodes: map[fabric.ID]fabric.Node{n.id: own, "nomad/b": record(2, "10.77.2.0/25")}}}
		c.change(&x, &n)
		expect(t, name, judgeRecords(x, n), c.want...)
	}
}

func TestClusterNetwork(t *testing.T) {
	s := settings()
	own := []netip.Prefix{pfx("10.244.1.0/24")}
	env := map[string]string{"FLANNEL_NETWORK": "10.244.0.0/16", "FLANNEL_SUBNET": "10.244.1.1/24"}
	for name, c := range map[string]struct {
		c    cluster
		h    host
		want []string
		in   string
	}{
		"bridge":             {cluster{types: []string{"bridge", "portmap"}}, host{}, nil, ""},
		"flannel":            {cluster{types: []string{"flannel", "portmap"}, flannel: env}, host{}, nil, ""},
		"flannel, elsewhere": {cluster{flannel: map[string]string{"FLANNEL_NETWORK": "10.245.0.0/16", "FLANNEL_SUBNET": "10.244.1.1/24"}}, host{}, []string{"fail flannel's network 10.245.0.0/16"}, "clusterCIDRs: [10.245.0.0/16]"},
		"flannel's subnet":   {cluster{flannel: map[string]string{"FLANNEL_NETWORK": "10.244.0.0/16", "FLANNEL_SUBNET": "10.244.9.1/24"}}, host{}, []string{"fail flannel's subnet"}, "10.244.9.0/24"},
		"Calico, not seen":   {cluster{types: []string{"calico"}}, host{}, []string{"unknown Calico's IPPools"}, "spec: {cidr: 10.77.0.0/16, disabled: true"},
		"Calico, no pool":    {cluster{pools: []netip.Prefix{pfx("10.244.0.0/16"), pfx("10.77.0.0/16")}}, machineWith(link{name: "cali1"}), []string{"warn Calico's IPPools"}, "cidr: 10.78.0.0/20"},
		"Calico, pools":      {cluster{types: []string{"calico"}, pools: []netip.Prefix{pfx("10.78.0.0/20"), pfx("10.77.0.0/16")}}, host{}, nil, ""},
		"Calico, eBPF":       {cluster{pools: []netip.Prefix{pfx("10.78.0.0/20"), pfx("10.77.0.0/16")}}, machineWith(link{name: "cali1"}, link{name: "bpfin.cali"}), []string{"warn Calico's data plane"}, "linuxDataplane"},
		"Cilium":             {cluster{}, machineWith(link{name: "cilium_host"}), []string{"warn plugin"}, "bpf.hostLegacyRouting=true"},
		"unknown":            {cluster{types: []string{"aws-cni"}, file: "x"}, host{}, []string{"unknown plugin"}, "aws-cni"},
		"none":               {cluster{err: os.ErrNotExist}, host{}, []string{"unknown plugin"}, "not exist"},
	} {
		got := judgeCluster(c.c, &s, own, c.h)
		expect(t, name, got, c.want...)
		text := ""
		for _, x := range got {
			text += x.Found + x.Remedy
		}
		if !strings.Contains(text, c.in) {
			t.Errorf("%s: no %q in %s", name, c.in, text)
		}
	}
}

func TestPodAddresses(t *testing.T) {
	own := []netip.Prefix{pfx("10.244.1.0/24")}
	with := func(routes []route, links ...link) host {
		h := machineWith(links...)
		h.routes = routes
		return h
	}
	pods := []link{{name: "cali1", kind: "veth"}, {name: "cali2", kind: "veth"}}
	expect(t, "of the Node's range", judgePodAddresses(own, with([]route{{pfx("10.244.1.7/32"), "cali1"}}, pods...)))
	expect(t, "of Calico's own block", judgePodAddresses(own, with([]route{{pfx("10.244.1.7/32"), "cali1"}, {pfx("10.244.99.64/32"), "cali2"}}, pods...)), "fail pods' addresses")
	expect(t, "of Cilium's own pool", judgePodAddresses(own, with(nil, link{name: "cilium_host", kind: "veth", addrs: []netip.Prefix{pfx("10.0.1.68/32")}})), "fail pods' addresses")
	// Routes to elsewhere tell nothing of pods.
	if got := judgePodAddresses(own, with([]route{{pfx("203.0.113.9/32"), "tun0"}, {pfx("10.9.0.0/16"), "eth0"}}, link{name: "tun0", kind: "tuntap"})); got != nil {
		t.Error(got)
	}
}

func TestNodeObject(t *testing.T) {
	cfg := &agent.Config{Node: agent.Node{Kind: fabric.KindK8s, Name: "n"}}
	known := node{last: &peers.State{}}
	ranges := []netip.Prefix{pfx("10.244.1.0/24")}
	expect(t, "healthy", judgeNodeObject(nodeObject{asked: true, uid: "u", ranges: ranges}, cfg, node{}))
	expect(t, "away, new", judgeNodeObject(nodeObject{asked: true, err: errors.New("refused")}, cfg, node{}), "fail Node n")
	expect(t, "away, known", judgeNodeObject(nodeObject{asked: true, err: errors.New("refused")}, cfg, known), "warn Node n")
	expect(t, "no ranges", judgeNodeObject(nodeObject{asked: true, uid: "u"}, cfg, known), "fail Node n")
	cfg.Node.PodCIDRs = ranges
	expect(t, "an operator's", judgeNodeObject(nodeObject{asked: true, uid: "u"}, cfg, known))
}

func TestPluginsAreThoseOfTheFirstFile(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"10-flannel.conflist": `{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}`,
		"20-bridge.conf":      `{"type":"bridge"}`, "00-readme.txt": "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if file, types, err := plugins(dir); err != nil || filepath.Base(file) != "10-flannel.conflist" || !slices.Equal(types, []string{"flannel", "portmap"}) {
		t.Error(file, types, err)
	}
	if _, _, err := plugins(t.TempDir()); err == nil {
		t.Error("an empty directory has a network")
	}
}

func TestNomad(t *testing.T) {
	cfg := &agent.Config{Node: agent.Node{Kind: fabric.KindNomad}}
	cfg.Complete()
	for name, c := range map[string]struct {
		change  func(*nomad)
		running bool
		want    []string
	}{
		"healthy":       {func(*nomad) {}, true, nil},
		"away":          {func(n *nomad) { n.err = errors.New("connection refused") }, true, []string{"fail agent"}},
		"denied":        {func(n *nomad) { n.err = errors.New("Permission denied") }, true, []string{"fail agent"}},
		"a server":      {func(n *nomad) { n.id = "" }, true, []string{"fail agent"}},
		"directory":     {func(n *nomad) { n.configDir = "/etc/cni" }, true, []string{"fail cni_config_dir"}},
		"plugins":       {func(n *nomad) { n.missing = []string{"netbridge-ipam"} }, true, []string{"fail CNI plugins"}},
		"paths untold":  {func(n *nomad) { n.paths = nil }, true, []string{"unknown CNI plugins"}},
		"no SIGHUP":     {func(n *nomad) { n.knows = false }, true, []string{"fail network cni/netbridge"}},
		"before it ran": {func(n *nomad) { n.knows, n.conflist, n.meta = false, false, "" }, false, []string{"warn network cni/netbridge"}},
		"stopped":       {func(n *nomad) { n.meta = "" }, false, []string{"warn meta.netbridge"}},
		"not ready":     {func(n *nomad) { n.meta = "" }, true, []string{"fail meta.netbridge"}},
		"may not mark":  {func(n *nomad) { n.metaErr = errors.New("Permission denied") }, true, []string{"fail token writes"}},
		"nothing set":   {func(n *nomad) { n.metaErr = errors.New("missing required Meta object") }, true, nil},
	} {
		n := nomad{asked: true, id: "a", configDir: cfg.CNI.ConfigDir, paths: []string{"/opt/cni/bin"}, knows: true, conflist: true, meta: "ready"}
		c.change(&n)
		expect(t, name, judgeNomad(n, cfg, c.running), c.want...)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bridge"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := absent([]string{"/none", dir}, wanted(false)); !slices.Equal(got, []string{"loopback", "netbridge-ipam"}) {
		t.Error(got)
	}
}

func TestPaths(t *testing.T) {
	p := paths{tried: []path{{id: "nomad/a", node: record(1, "10.77.1.0/25")}, {id: "nomad/b", node: record(2, "10.77.2.0/25"), err: os.ErrDeadlineExceeded}}, all: 2}
	got := judgePaths(p, settings())
	expect(t, "one silent", got, "fail path to nomad/b")
	if !strings.Contains(got[0].Remedy, "--dport 8473") {
		t.Error(got[0].Remedy)
	}
	p.tried = p.tried[:1]
	expect(t, "all answer", judgePaths(p, settings()))
}

func TestUDPPorts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "udp")
	if err := os.WriteFile(file, []byte("  sl  local_address rem_address\n  112: 00000000:2119 00000000:0000 07\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := udpPorts(file); err != nil || !got[8473] || len(got) != 1 {
		t.Error(got, err)
	}
}
