package network

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/consul/api"
	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// many is the fabric of one agent and its many peers, which are records alone.
type many struct {
	*bed
	host     *host
	settings fabric.Settings
	own      fabric.Node
	peers    int
	pid      int
	parts    int
	bytes    atomic.Int64 // from Consul to the agent
}

// BenchmarkManyPeers tells what one agent takes, and what a change costs, also where
// it follows the records in parts.
func BenchmarkManyPeers(b *testing.B) {
	has(b, "netbridge", "consul", "nft")
	for _, c := range []struct {
		parts int
		peers []int
	}{{1, []int{100, 300, 1000}}, {registry.Parts, []int{1000}}} {
		b.Run(fmt.Sprint(c.parts), func(b *testing.B) { manyPeers(b, c.parts, c.peers) })
	}
}

func manyPeers(b *testing.B, parts int, peers []int) {
	m := &many{bed: newBed(b), parts: parts}
	_, m.settings = m.fabric("many", fabric.BackendVXLAN)
	m.host = m.bed.host()
	m.host.id, m.host.parts = uuid.NewSHA1(uuid.NameSpaceOID, []byte("own")).String(), parts
	cmd, ask := m.host.agent("many", "nb0", m.counted(router+":8500"))
	m.pid = cmd.Process.Pid
	await(b, "record of its own", 30*time.Second, func() bool {
		st, err := ask()
		m.own = st.Own
		return err == nil && st.Own.Host.IsValid()
	})
	for _, n := range peers {
		m.fill(n)
		await(b, "peers", time.Minute, func() bool {
			st, err := ask()
			return err == nil && len(st.Peers) == n && len(st.Drift) == 0
		})
		m.change(n)
	}
	m.rest(ask)
}

// of names what a figure is of.
func (m *many) of(peers int) string {
	if m.parts > 1 {
		return fmt.Sprintf("%d peers in %d parts", peers, m.parts)
	}
	return fmt.Sprintf("%d peers", peers)
}

// counted is the address of a way to Consul on which its bytes are counted.
func (m *many) counted(consul string) string {
	var l net.Listener
	m.ns.Must(func() (err error) { l, err = net.Listen("tcp4", router+":0"); return err })
	m.b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := m.ns.Dial(m.b.Context(), "tcp4", consul)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, io.TeeReader(out, counter{&m.bytes})); _ = in.Close() }()
		}
	}()
	return l.Addr().String()
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// record is the i-th peer's, whose addresses are not the agent's. ID and addresses
// are as scattered as a real fabric's, since Consul compresses what it sends.
func (m *many) record(i int) (*api.KVPair, fabric.Node) {
	const spare = 2000 // a number that no peer has
	// Both factors have no divisor in common with how many there are.
	n := fabric.Node{Version: fabric.Version, Host: m.settings.Host(i * 1009 % m.settings.Hosts()), MTU: plain - 50,
		Endpoint: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), CIDRs: []netip.Prefix{m.settings.Block(i * 2647 % m.settings.Blocks())}}
	id := uuid.NewSHA1(uuid.NameSpaceOID, []byte(fmt.Sprint(i)))
	if n.Host == m.own.Host {
		n.Host = m.settings.Host(spare * 1009 % m.settings.Hosts())
	}
	if n.CIDRs[0] == m.own.CIDRs[0] {
		n.CIDRs[0] = m.settings.Block(spare * 2647 % m.settings.Blocks())
	}
	data, _ := json.Marshal(n)
	return &api.KVPair{Key: "netbridge/v1/many/nodes/nomad/" + id.String(), Value: data}, n
}

func (m *many) fill(n int) {
	for m.peers < n {
		var ops api.KVTxnOps
		for ; m.peers < n && len(ops) < 64; m.peers++ {
			p, _ := m.record(m.peers)
			ops = append(ops, &api.KVTxnOp{Verb: api.KVSet, Key: p.Key, Value: p.Value})
		}
		if ok, _, _, err := m.consul.Client.KV().Txn(ops, nil); err != nil || !ok {
			m.b.Fatal("write records:", ok, err)
		}
	}
}

// change adds one peer after the other, and takes them away again.
func (m *many) change(n int) {
	const changes = 10
	var took []time.Duration
	cpu, got := cpuOf(m.b, m.pid), m.bytes.Load()
	for i := range changes {
		p, node := m.record(n + i)
		began := time.Now()
		if _, err := m.consul.Client.KV().Put(p, nil); err != nil {
			m.b.Fatal(err)
		}
		await(m.b, "route to the new peer", 10*time.Second, func() bool { return m.routed(node.CIDRs[0]) })
		took = append(took, time.Since(began))
		time.Sleep(200 * time.Millisecond) // changes that come one at a time
	}
	perBytes, perCPU := float64(m.bytes.Load()-got)/changes, (cpuOf(m.b, m.pid)-cpu)/changes
	for i := range changes {
		p, _ := m.record(n + i)
		if _, err := m.consul.Client.KV().Delete(p.Key, nil); err != nil {
			m.b.Fatal(err)
		}
	}
	_, last := m.record(n + changes - 1)
	await(m.b, "end of the last route", 10*time.Second, func() bool { return !m.routed(last.CIDRs[0]) })
	report.Add(m.of(n)+": from a record's write to the route",
		fmt.Sprintf("p50 %d ms, longest %d ms", figures.Quantile(took, 0.5).Milliseconds(), figures.Quantile(took, 1).Milliseconds()), "")
	report.Add(m.of(n)+": a change brings an agent from Consul", fmt.Sprintf("%.0f kB", perBytes/1000), fmt.Sprintf("%.0f bytes a peer", perBytes/float64(n)))
	report.Add(m.of(n)+": a change costs an agent", fmt.Sprintf("%.0f ms of CPU", perCPU*1000), "")
}

func (m *many) routed(to netip.Prefix) bool {
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
	found := false
	m.host.Must(func() error {
		r, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		found = len(r) > 0
		return err
	})
	return found
}

// rest is an agent that nothing happens to.
func (m *many) rest(ask func() (agent.Status, error)) {
	cpu, got := cpuOf(m.b, m.pid), m.bytes.Load()
	time.Sleep(*idle)
	share := (cpuOf(m.b, m.pid) - cpu) / idle.Seconds()
	perSecond := float64(m.bytes.Load()-got) / idle.Seconds()
	st, err := ask()
	must(m.b, err)
	report.Add(m.of(len(st.Peers))+": an agent at rest",
		fmt.Sprintf("%.1f %% of a core, %.0f MiB resident, %.1f kB/s from Consul", 100*share, resident(m.b, m.pid), perSecond/1000), "")
}

// cpuOf is what a process has used, in seconds; /proc counts hundredths.
func cpuOf(b *testing.B, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var sum float64
	for _, s := range f[11:13] {
		n, err := strconv.ParseFloat(s, 64)
		must(b, err)
		sum += n / 100
	}
	return sum
}

// resident memory in MiB.
func resident(b *testing.B, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			must(b, err)
			return n / 1024
		}
	}
	b.Fatal("no resident memory is known")
	return 0
}
