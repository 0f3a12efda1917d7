package network

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	// segment is the underlay, a bridge of the benchmark's own namespace.
	segment = "seg0"
	router  = "192.168.100.1"
	// plain is an Ethernet's MTU.
	plain = 1500
)

type bed struct {
	b      *testing.B
	ns     *netlab.NS
	consul *consultest.Server
	hosts  int
	pods   int
}

// host is a machine on the underlay.
type host struct {
	*netlab.NS
	bed *bed
	ep  netip.Addr
	dir string
	// id is the node's, if it is not the name; parts are those in which its agent
	// follows the others.
	id    string
	parts int
}

func newBed(b *testing.B) *bed {
	b.Helper()
	bed := &bed{b: b, ns: netlab.Here(b, "underlay")}
	bed.ns.Run("ip link add " + segment + " type bridge")
	b.Cleanup(func() { _, _ = bed.ns.Try("ip", "link", "del", segment) }) // it goes with the namespace
	bed.ns.Run("ip link set " + segment + " up")
	bed.ns.Run("ip addr add " + router + "/24 dev " + segment)
	return bed
}

func (bed *bed) host() *host {
	bed.b.Helper()
	bed.hosts++
	h := &host{NS: netlab.New(bed.b, fmt.Sprint("host", bed.hosts)), bed: bed, ep: netip.AddrFrom4([4]byte{192, 168, 100, byte(10 + bed.hosts)})}
	port := fmt.Sprint("p", bed.hosts)
	netlab.Join(h.NS, "eth0", bed.ns, port)
	bed.ns.Run("ip link set " + port + " master " + segment)
	h.Run(fmt.Sprintf("ip addr add %s/24 dev eth0", h.ep))
	h.Run("ip route add default via " + router)
	h.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	dir, err := os.MkdirTemp("", "nbb")
	must(bed.b, err)
	bed.b.Cleanup(func() { _ = os.RemoveAll(dir) })
	h.dir = dir
	return h
}

// run starts a program of bin on the host, until the benchmark ends.
func (h *host) run(name string, env []string, args ...string) *exec.Cmd {
	h.bed.b.Helper()
	log, err := os.OpenFile(filepath.Join(h.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(h.bed.b, err)
	cmd := exec.Command(filepath.Join(bin, name), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	must(h.bed.b, h.Start(cmd))
	h.bed.b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if h.bed.b.Failed() {
			out, _ := os.ReadFile(log.Name())
			lines := strings.Split(string(out), "\n")
			h.bed.b.Logf("%s on %s:\n%s", name, h.Name, strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
		_ = log.Close()
	})
	return cmd
}

// pod is a namespace behind the host's bridge, as the bridge plugin makes one.
type pod struct {
	*netlab.NS
	ip netip.Addr
}

func (h *host) pod(bridge string, block netip.Prefix, mtu int) pod {
	h.bed.b.Helper()
	h.bed.pods++
	p := pod{netlab.New(h.bed.b, fmt.Sprint("pod", h.bed.pods)), fabric.Gateway(block).Next()}
	port := fmt.Sprint("v", h.bed.pods)
	netlab.Join(p.NS, "eth0", h.NS, port)
	h.Run("ip link set " + port + " master " + bridge)
	h.Run(fmt.Sprintf("ip link set %s mtu %d", port, mtu))
	p.Run(fmt.Sprintf("ip link set eth0 mtu %d", mtu))
	p.Run(fmt.Sprintf("ip addr add %s/%d dev eth0", p.ip, block.Bits()))
	p.Run("ip route add default via " + fabric.Gateway(block).String())
	return p
}

// bridge makes one with the block's gateway.
func (h *host) bridge(name string, block netip.Prefix, mtu int) {
	h.Run("ip link add " + name + " type bridge")
	h.Run("ip link set " + name + " up")
	h.Run(fmt.Sprintf("ip addr add %s/%d dev %s", fabric.Gateway(block), block.Bits(), name))
	h.Run(fmt.Sprintf("ip link set %s mtu %d", name, mtu))
}

// fabric sets one up in Consul, which is started where it does not run.
func (bed *bed) fabric(name, backend string) (*registry.Registry, fabric.Settings) {
	bed.b.Helper()
	if bed.consul == nil {
		bed.consul = consultest.Start(bed.b, bed.ns, false)
	}
	s := fabric.Settings{Backend: backend, BurstCIDR: netip.MustParsePrefix("10.64.0.0/13")} // 4,096 blocks
	s.Complete()
	r := registry.New(bed.consul.Client, name)
	must(bed.b, r.SetSettings(bed.b.Context(), s))
	return r, s
}

// agent runs one on a host, as a Nomad client's without Nomad, which asks Consul
// there. It returns how to ask it.
func (h *host) agent(fabricName, device, consul string) (*exec.Cmd, func() (agent.Status, error)) {
	h.bed.b.Helper()
	socket := filepath.Join(h.dir, "sock")
	config, err := json.Marshal(map[string]any{
		"fabric": fabricName, "device": device, "node": map[string]any{"kind": "nomad", "id": cmp.Or(h.id, h.Name)}, "nomad": map[string]any{"disabled": true},
		"consul": map[string]any{"address": consul}, "cni": map[string]any{"configDir": filepath.Join(h.dir, "cni")},
		"stateDir": filepath.Join(h.dir, "state"), "socket": socket, "metricsAddress": "none",
		"watch": map[string]any{"parts": max(1, h.parts)},
	})
	must(h.bed.b, err)
	file := filepath.Join(h.dir, "agent.json")
	must(h.bed.b, os.WriteFile(file, config, 0o600))
	cmd := h.run("netbridge", nil, "agent", "--config", file)
	return cmd, func() (agent.Status, error) {
		ctx, cancel := context.WithTimeout(h.bed.b.Context(), 5*time.Second)
		defer cancel()
		return agent.Ask(ctx, socket)
	}
}

// contender carries packets between two pods.
type contender struct {
	name string
	a, z pod
}

// netbridge is two hosts with agents.
func (bed *bed) netbridge(name, backend string) contender {
	bed.b.Helper()
	bed.fabric(backend, backend)
	var pods []pod
	hosts := []*host{bed.host(), bed.host()}
	var asks []func() (agent.Status, error)
	for i, h := range hosts {
		device := "nb0"
		if backend == fabric.BackendWireGuard {
			// The sockets of all devices are in one directory of the machine.
			device = fmt.Sprintf("nbb%dx%d", os.Getpid(), i)
			h.run("netbridge", nil, "wireguard", "--device", device)
			bed.b.Cleanup(func() { _ = os.Remove("/var/run/wireguard/" + device + ".sock") })
		}
		_, ask := h.agent(backend, device, router+":8500")
		asks = append(asks, ask)
	}
	for i, ask := range asks {
		var st agent.Status
		await(bed.b, "peer of "+name, 30*time.Second, func() bool {
			var err error
			st, err = ask()
			return err == nil && len(st.Peers) == 1 && len(st.Drift) == 0 && len(st.Problems) == 0
		})
		pods = append(pods, hosts[i].pod("nbr0", st.Own.CIDRs[0], st.Own.MTU))
	}
	return contender{name, pods[0], pods[1]}
}

// handMade is what an operator would type, and with tracked what every node has
// beside it that runs Docker or kube-proxy: connections that are tracked because
// some are masqueraded.
func (bed *bed) handMade(name string, tracked bool) contender {
	bed.b.Helper()
	const mtu = plain - 50
	var pods []pod
	hosts := []*host{bed.host(), bed.host()}
	block := func(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.50.%d.0/24", i)) }
	for i, h := range hosts {
		o := hosts[1-i]
		h.Run(fmt.Sprintf("ip link add vx0 address 02:00:00:00:00:0%d mtu %d type vxlan id 7 local %s dstport 8474 nolearning", i, mtu, h.ep))
		h.Run("ip link set vx0 up")
		h.Run(fmt.Sprintf("ip addr add 10.51.0.%d/32 dev vx0", i))
		h.Run(fmt.Sprintf("ip neigh add 10.51.0.%d lladdr 02:00:00:00:00:0%d dev vx0 nud permanent", 1-i, 1-i))
		h.Run(fmt.Sprintf("bridge fdb add 02:00:00:00:00:0%d dst %s dev vx0", 1-i, o.ep))
		h.Run(fmt.Sprintf("ip route add %s via 10.51.0.%d dev vx0 onlink", block(1-i), 1-i))
		h.bridge("br0", block(i), mtu)
		if tracked {
			h.Run("nft add table ip nat")
			h.Run("nft add chain ip nat post { type nat hook postrouting priority 100 ; }")
			h.Run(fmt.Sprintf("nft add rule ip nat post ip saddr %s ip daddr != 10.50.0.0/16 masquerade", block(i)))
		}
		pods = append(pods, h.pod("br0", block(i), mtu))
	}
	return contender{name, pods[0], pods[1]}
}

// flannel is its vxlan backend, with etcd as its record.
func (bed *bed) flannel() contender {
	bed.b.Helper()
	store := bed.host()
	at := fmt.Sprintf("http://%s:2379", store.ep)
	store.run("etcd", nil, "--data-dir="+filepath.Join(store.dir, "etcd"), "--listen-client-urls="+at, "--advertise-client-urls="+at,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=default=http://127.0.0.1:2380")
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	put, err := json.Marshal(map[string]string{
		"key": encode("/coreos.com/network/config"), "value": encode(`{"Network":"10.60.0.0/16","Backend":{"Type":"vxlan","Port":8475}}`),
	})
	must(bed.b, err)
	await(bed.b, "answer of etcd", 30*time.Second, func() bool {
		resp, err := http.Post(at+"/v3/kv/put", "application/json", bytes.NewReader(put))
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	var pods []pod
	hosts := []*host{bed.host(), bed.host()}
	for _, h := range hosts {
		h.run("flanneld", nil, "-etcd-endpoints="+at, "-iface=eth0", "-ip-masq=false", "-iptables-forward-rules=false", "-subnet-file="+filepath.Join(h.dir, "subnet.env"))
	}
	for _, h := range hosts {
		var block netip.Prefix
		await(bed.b, "lease of flannel", 30*time.Second, func() bool {
			data, err := os.ReadFile(filepath.Join(h.dir, "subnet.env"))
			for line := range strings.Lines(string(data)) {
				if v, ok := strings.CutPrefix(strings.TrimSpace(line), "FLANNEL_SUBNET="); ok {
					p, bad := netip.ParsePrefix(v)
					block, err = p.Masked(), bad
				}
			}
			return err == nil && block.IsValid()
		})
		h.bridge("cni0", block, plain-50)
		pods = append(pods, h.pod("cni0", block, plain-50))
	}
	for _, h := range hosts {
		await(bed.b, "route of flannel", 30*time.Second, func() bool {
			return strings.Contains(h.Run("ip route"), "dev flannel.1 onlink")
		})
	}
	return contender{"flannel, vxlan", pods[0], pods[1]}
}
