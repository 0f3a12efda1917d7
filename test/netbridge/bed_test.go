package netbridge

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	cniDir     = "/usr/lib/cni"
	fabricName = "bed"
)

// program is the netbridge that TestMain builds, unless NETBRIDGE names a
// directory that has it and the plugin.
var program string

// TestMain makes this binary another program where a test has started it as one.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serverEnv) != "":
		serve(os.Getenv(serverEnv))
	case filepath.Base(os.Args[0]) == timedPlugin:
		os.Exit(timed())
	default:
		os.Exit(build(m))
	}
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "netbridge-bed")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "netbridge")
	for _, name := range []string{"netbridge", ipam.Plugin} {
		if built := os.Getenv("NETBRIDGE"); built != "" {
			err = os.Symlink(filepath.Join(built, name), filepath.Join(dir, name))
		} else {
			cmd := exec.Command("go", "build", "-o", dir, "../../cmd/"+name)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			err = cmd.Run()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n", name, err)
			return 1
		}
	}
	return m.Run()
}

type bed struct {
	t        *testing.T
	underlay *netlab.NS
	consul   *consultest.Server
	registry *registry.Registry
	settings fabric.Settings
	hosts    []*host
	pods     int
}

type host struct {
	*netlab.NS
	bed    *bed
	id     fabric.ID
	ep     netip.Addr
	dir    string
	config string
	device string
	// as runs the agent with fewer rights; empty: as root.
	as  []string
	cmd *exec.Cmd
	log *os.File
	// cni is the network of a Kubernetes node's pods, flanneld what may have made it.
	cni      string
	flanneld *exec.Cmd
	// carrier carries a WireGuard device.
	carrier *exec.Cmd
}

// pod is a namespace behind a host.
type pod struct {
	*netlab.NS
	host *host
	ip   string
	name string
}

// emptyBed is Consul and an underlay of two networks, without hosts.
func emptyBed(t *testing.T) *bed {
	t.Helper()
	return bedIn(t, netlab.New(t, "underlay"), false)
}

func needs(t *testing.T) {
	t.Helper()
	netlab.Root(t, "ip", "bridge", "nft", "iptables", filepath.Join(cniDir, "bridge"))
}

// bedIn is an empty bed in a namespace that is there. With acls its Consul asks for
// tokens.
func bedIn(t *testing.T, underlay *netlab.NS, acls bool) *bed {
	t.Helper()
	needs(t)
	b := &bed{t: t, underlay: underlay}
	for i := 1; i <= 2; i++ {
		b.underlay.Run(fmt.Sprintf("ip link add seg%d type bridge", i))
		b.underlay.Run(fmt.Sprintf("ip link set seg%d up", i))
		b.underlay.Run(fmt.Sprintf("ip addr add 192.168.10%d.1/24 dev seg%d", i, i))
	}
	allowForwarding(b.underlay)
	b.consul = consultest.Start(t, b.underlay, acls)
	b.registry = registry.New(b.consul.Client, fabricName)
	b.settings = fabric.Settings{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
	b.settings.BlockBits = 28 // 13 pods
	b.settings.Complete()
	b.set()
	return b
}

// newBed is nom1 and k8s1 in one network, nom2 in the other, all agents running.
func newBed(t *testing.T) *bed {
	t.Helper()
	b := emptyBed(t)
	b.populate()
	return b
}

func (b *bed) populate(changes ...func(config map[string]any)) {
	b.t.Helper()
	nom1, nom2, k8s1 := b.host("nomad/nom1", 1, 11, changes...), b.host("nomad/nom2", 2, 12, changes...), b.host("k8s/k8s1", 1, 21, changes...)
	// As Docker, and as flannel of both fashions.
	nom1.Run("iptables -P FORWARD DROP")
	k8s1.flannel()
	for _, h := range []*host{nom1, nom2, k8s1} {
		h.start()
	}
	for _, h := range b.hosts {
		h.until("all peers", func(st agent.Status) bool { return len(st.Peers) == 2 && st.Incomplete == "" && len(st.Drift) == 0 })
	}
}

// step is one of the things that happen to a bed, which it must leave as it was.
type step[B any] struct {
	name string
	test func(*testing.T, B, []*pod)
}

// walk makes a pod on each host of b and goes from one step to the next, on b or
// what is made of it.
func walk[B any](t *testing.T, b *bed, on B, steps []step[B]) {
	t.Helper()
	var pods []*pod
	for _, h := range b.hosts {
		pods = append(pods, h.pod())
	}
	for _, s := range steps {
		ok := t.Run(s.name, func(sub *testing.T) {
			b.t = sub
			s.test(sub, on, pods)
		})
		b.t = t
		if !ok {
			t.FailNow()
		}
	}
}

func allowForwarding(n *netlab.NS) {
	n.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

// set writes the settings with the program, as an operator does.
func (b *bed) set() {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "fabric.json")
	data, _ := json.Marshal(b.settings)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(program, "fabric", "set", "--fabric", fabricName, "--consul-address", b.consul.Address, "-f", file)
	cmd.Env = append(os.Environ(), "CONSUL_HTTP_TOKEN="+consultest.Token) // which one without ACLs does not look at
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("fabric set: %v\n%s", err, out)
	}
}

func (b *bed) host(id fabric.ID, segment, number int, changes ...func(config map[string]any)) *host {
	name := strings.Split(string(id), "/")[1]
	ns, ep := netlab.New(b.t, name), netip.AddrFrom4([4]byte{192, 168, byte(100 + segment), byte(number)})
	port := fmt.Sprintf("p%d", number)
	netlab.Join(ns, "eth0", b.underlay, port)
	b.underlay.Run(fmt.Sprintf("ip link set %s master seg%d", port, segment))
	ns.Run(fmt.Sprintf("ip addr add %s/24 dev eth0", ep))
	ns.Run(fmt.Sprintf("ip route add default via 192.168.10%d.1", segment))
	return b.machine(ns, id, ep, changes...)
}

// machine is a host whose namespace and address are there.
func (b *bed) machine(ns *netlab.NS, id fabric.ID, ep netip.Addr, changes ...func(config map[string]any)) *host {
	name := strings.Split(string(id), "/")[1]
	h := &host{NS: ns, bed: b, id: id, ep: ep}
	var err error
	if h.dir, err = os.MkdirTemp("", "nb-"); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = os.RemoveAll(h.dir) })
	h.config = filepath.Join(h.dir, "agent.yaml")
	c := map[string]any{
		"fabric": fabricName, "consul": map[string]any{"address": "192.168.101.1:8500"}, "nomad": map[string]any{"disabled": true},
		"stateDir": filepath.Join(h.dir, "state"), "socket": filepath.Join(h.dir, "sock"), "logLevel": "debug",
	}
	node := map[string]any{"kind": id.Kind(), "id": name}
	if id.Kind() == fabric.KindK8s {
		node["podCIDRs"] = []string{"10.244.1.0/24"}
	} else {
		c["cni"] = map[string]any{"configDir": filepath.Join(h.dir, "cni")}
	}
	c["node"] = node
	c["device"] = "nb0"
	for _, change := range changes {
		change(c)
	}
	h.device = c["device"].(string)
	data, _ := json.Marshal(c)
	if err := os.WriteFile(h.config, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if h.log, err = os.Create(filepath.Join(h.dir, "log")); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		h.kill()
		h.drop()
		_ = os.Remove(h.carrierSocket()) // it may have none
		if b.t.Failed() {
			out, _ := os.ReadFile(h.log.Name())
			lines := strings.Split(string(out), "\n")
			b.t.Logf("agent of %s:\n%s", id, strings.Join(lines[max(0, len(lines)-60):], "\n"))
			if store, err := ipam.Open(filepath.Join(h.dir, "state", "ipam")); err == nil {
				entries, err := store.Entries()
				b.t.Logf("who has its addresses: %+v %v", entries, err)
			}
		}
		_ = h.log.Close()
	})
	b.hosts = append(b.hosts, h)
	return h
}

func (h *host) flannel() {
	h.Run("iptables -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully")
	h.Run("iptables -t nat -A POSTROUTING ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE")
}

func (h *host) start() {
	h.bed.t.Helper()
	args := append(slices.Clone(h.as), program, "agent", "--config", h.config)
	h.cmd = exec.Command(args[0], args[1:]...)
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	if err := h.Start(h.cmd); err != nil {
		h.bed.t.Fatalf("start the agent of %s: %v", h.id, err)
	}
}

// kill is a SIGKILL.
func (h *host) kill() {
	if h.cmd != nil {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
		h.cmd = nil
	}
}

func (h *host) status() (agent.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return agent.Ask(ctx, filepath.Join(h.dir, "sock"))
}

// until waits for the agent to tell what is to be.
func (h *host) until(what string, ok func(agent.Status) bool) agent.Status {
	h.bed.t.Helper()
	limit := time.Now().Add(40 * time.Second)
	for {
		st, err := h.status()
		if err == nil && ok(st) {
			return st
		}
		if time.Now().After(limit) {
			h.bed.t.Fatalf("%s never had %s: %+v %v", h.id, what, st, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// settled waits until the agent says that all is as it should be.
func (h *host) settled() {
	h.bed.t.Helper()
	h.until("peace", func(st agent.Status) bool {
		return st.Incomplete == "" && len(st.Drift) == 0 && len(st.Problems) == 0 && st.Fenced == ""
	})
}

// network is what a pod of the host joins: the agent's conflist on a Nomad
// client, a plain bridge on the Kubernetes node.
func (h *host) network() (*libcni.NetworkConfigList, error) {
	if h.id.Kind() == fabric.KindNomad {
		return libcni.ConfListFromFile(filepath.Join(h.dir, "cni", "netbridge.conflist"))
	}
	return h.clusterNetwork()
}

func (h *host) tryPod() (*pod, error) {
	list, err := h.network()
	if err != nil {
		return nil, err
	}
	h.bed.pods++
	p := &pod{NS: netlab.New(h.bed.t, fmt.Sprint("pod", h.bed.pods)), host: h, name: fmt.Sprint("alloc-", h.bed.pods)}
	cni := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(program), cniDir}, filepath.Join(h.dir, "cache"), nil)
	err = h.Do(func() error {
		res, err := cni.AddNetworkList(context.Background(), list, &libcni.RuntimeConf{ContainerID: p.name, NetNS: p.Path(), IfName: "eth0"})
		if err != nil {
			return err
		}
		r, err := types.GetResult(res)
		if err == nil {
			p.ip = r.IPs[0].Address.IP.String()
		}
		return err
	})
	return p, err
}

func (h *host) pod() *pod {
	h.bed.t.Helper()
	p, err := h.tryPod()
	if err != nil {
		h.bed.t.Fatalf("a pod on %s: %v", h.id, err)
	}
	return p
}

// caller is the address that a server at to sees when from calls it by TCP, after
// size bytes have come back whole.
func caller(from, to *netlab.NS, address string, size int) (string, error) {
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp4", address+":0")
		return err
	})
	if err != nil {
		return "", err
	}
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, size)
		for n := 0; n < size; {
			m, err := c.Read(buf[n:])
			if err != nil {
				return
			}
			n += m
		}
		_, _ = c.Write(buf)
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		seen <- host
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, "tcp4", l.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = c.Write(make([]byte, size)) }()
	for n, buf := 0, make([]byte, 65536); n < size; {
		m, err := c.Read(buf)
		if err != nil {
			return "", fmt.Errorf("after %d of %d bytes: %w", n, size, err)
		}
		n += m
	}
	return <-seen, nil
}
