package netbridge

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

// names are the servers behind a client's: that of the cluster, a pod on its node,
// and that of the machines' network. The third is Consul.
type names struct {
	// silent drops what the cluster's is asked.
	silent atomic.Bool
	// asker is the last who asked it.
	asker atomic.Pointer[string]
	// service is the address of the Service legacy, once there is one.
	service atomic.Pointer[string]
}

func nameServers(t *testing.T, b *bed, far *pod) *names {
	t.Helper()
	n := &names{}
	nameServer(t, far.NS, far.ip, func(w dns.ResponseWriter, req *dns.Msg) {
		host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
		n.asker.Store(&host)
		if n.silent.Load() {
			return
		}
		m := new(dns.Msg).SetReply(req)
		a := map[string]string{"web.default.svc.cluster.local.": "10.96.7.7"}
		if ip := n.service.Load(); ip != nil {
			a["legacy.default.svc.cluster.local."] = *ip
		}
		q := req.Question[0]
		if ip, ok := a[q.Name]; ok {
			if q.Qtype == dns.TypeA {
				m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(ip)}}
			}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	nameServer(t, far.host.NS, far.host.ep.String(), func(w dns.ResponseWriter, req *dns.Msg) {
		m := new(dns.Msg).SetReply(req)
		if q := req.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP("198.51.100.7")}}
		}
		_ = w.WriteMsg(m)
	})
	if err := b.consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "db", Address: "192.0.2.77", Port: 5432}); err != nil {
		t.Fatal(err)
	}
	b.settings.DNS.Servers = []netip.Addr{netip.MustParseAddr(far.ip)}
	b.set()
	return n
}

func nameServer(t *testing.T, ns *netlab.NS, ip string, h dns.HandlerFunc) {
	t.Helper()
	var conn net.PacketConn
	ns.Must(func() (err error) {
		conn, err = net.ListenPacket("udp4", net.JoinHostPort(ip, "53"))
		return err
	})
	srv := &dns.Server{PacketConn: conn, Handler: h}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = conn.Close() })
}

// check asks as a pod does: its resolv.conf is the kubelet's, and every name has its
// answer; the cluster's names have one for as long as its server is away.
func (n *names) check(t *testing.T, c *devcluster.Cluster, b *bed) {
	t.Helper()
	const want = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver " + dnsAddress + "\noptions ndots:5"
	file := kubectl(t, c, "exec", "first", "--", "cat", "/etc/resolv.conf")
	var lines []string
	for _, kind := range []string{"search", "nameserver", "options"} {
		for line := range strings.Lines(file) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, kind+" ") {
				lines = append(lines, line)
			}
		}
	}
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("the pod's resolv.conf is\n%s\nwant\n%s", file, want)
	}
	look := func(name, want string) {
		t.Helper()
		began := time.Now()
		out := kubectl(t, c, "exec", "first", "--", "nslookup", name)
		if !strings.Contains(out, want) {
			t.Errorf("%s: no %s in\n%s", name, want, out)
		}
		t.Logf("%s: exec and answer in %s", name, time.Since(began))
	}
	look("web.default.svc.cluster.local", "10.96.7.7")
	for _, h := range b.hosts {
		if st, err := h.status(); err == nil && h.id.Kind() == "nomad" && *n.asker.Load() != st.Own.Host.String() {
			t.Errorf("the cluster's DNS is asked by %s, not %s", *n.asker.Load(), st.Own.Host)
		}
	}
	look("db.service.consul", "192.0.2.77")
	look("example.org", "198.51.100.7")
	n.silent.Store(true)
	time.Sleep(2 * time.Second) // more than its time to live
	look("web.default.svc.cluster.local", "10.96.7.7")
}
