package resolver

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"
)

// server is a real one on loopback.
type server struct {
	address string
	asked   atomic.Int64
	// down drops what arrives, slow waits with the answer.
	down atomic.Bool
	slow atomic.Int64
}

// both listens at one port by UDP and TCP. One that is free for the first may be
// somebody's for the second.
func both(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if conns, err := net.Listen("tcp4", packets.LocalAddr().String()); err == nil {
			return packets, conns
		}
		_ = packets.Close() // another port is next
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func serve(t *testing.T, answer func(q dns.Question, m *dns.Msg)) *server {
	t.Helper()
	packets, conns := both(t)
	s := &server{address: packets.LocalAddr().String()}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		s.asked.Add(1)
		if s.down.Load() {
			return
		}
		time.Sleep(time.Duration(s.slow.Load()))
		m := new(dns.Msg).SetReply(req)
		answer(req.Question[0], m)
		if opt := req.IsEdns0(); opt != nil {
			m.SetEdns0(1232, opt.Do())
		}
		if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
			m.Truncate(1232)
		}
		_ = w.WriteMsg(m) // the test sees that no answer came
	})
	var running sync.WaitGroup
	for _, srv := range []*dns.Server{{PacketConn: packets, Handler: h}, {Listener: conns, Handler: h}} {
		running.Add(1)
		srv.NotifyStartedFunc = running.Done
		go func() { _ = srv.ActivateAndServe() }()
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	running.Wait()
	return s
}

func rr(t *testing.T, text string, args ...any) dns.RR {
	t.Helper()
	r, err := dns.NewRR(fmt.Sprintf(text, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bench is a resolver that listens, before two servers.
type bench struct {
	t               *testing.T
	r               *Resolver
	address         string
	cluster, others *server
	mu              sync.Mutex
	counted         map[string]int
	clock           atomic.Int64
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, counted: map[string]int{}}
	b.cluster = serve(t, func(q dns.Question, m *dns.Msg) {
		switch {
		case q.Name == "web.shop.svc.cluster.local." && q.Qtype == dns.TypeA:
			m.Answer = []dns.RR{rr(t, "%s 5 A 10.96.0.20", q.Name)}
		case q.Name == "many.shop.svc.cluster.local.":
			for i := range 200 {
				m.Answer = append(m.Answer, rr(t, "%s 30 A 10.77.0.%d", q.Name, i))
			}
		case q.Qtype == dns.TypePTR:
			m.Answer = []dns.RR{rr(t, "%s 5 PTR pod.cluster.local.", q.Name)}
		default:
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "cluster.local. 30 SOA ns.cluster.local. h.cluster.local. 1 7200 1800 86400 10")}
		}
	})
	b.others = serve(t, func(q dns.Question, m *dns.Msg) { m.Answer = []dns.RR{rr(t, "%s 60 A 192.0.2.1", q.Name)} })
	b.r = New(hclog.NewNullLogger(), func(zone, from string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.counted[zone+" "+from]++
	})
	b.clock.Store(time.Now().UnixNano())
	b.r.cache.now = func() time.Time { return time.Unix(0, b.clock.Load()) }
	b.r.SetZones([]Zone{
		{Name: "cluster", Domains: []string{"cluster.local."}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}, Servers: []string{b.cluster.address}},
		{Name: "upstream", Domains: []string{"."}, Servers: []string{b.others.address}},
	})
	packets, conns := both(t)
	b.address = packets.LocalAddr().String()
	_, _ = packets.Close(), conns.Close() // the port is wanted free
	if err := b.r.Serve(t.Context(), b.address); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) pass(d time.Duration) { b.clock.Add(int64(d)) }

// try returns nil when there is no answer within the time that a pod waits.
func (b *bench) try(name string, qtype uint16, change func(*dns.Msg, *dns.Client)) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, qtype)
	c := &dns.Client{Timeout: 5 * time.Second}
	if change != nil {
		change(m, c)
	}
	answer, _, err := c.Exchange(m, b.address)
	if err != nil {
		return nil
	}
	return answer
}

func (b *bench) ask(name string, qtype uint16) *dns.Msg {
	b.t.Helper()
	m := b.try(name, qtype, nil)
	if m == nil {
		b.t.Fatalf("no answer for %s", name)
	}
	return m
}

func (b *bench) expect(what string, n int) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.counted[what] != n {
		b.t.Errorf("%s: %d, want %d of %v", what, b.counted[what], n, b.counted)
	}
}

func TestEachZoneHasItsServers(t *testing.T) {
	b := newBench(t)
	if m := b.ask("Web.Shop.svc.cluster.LOCAL.", dns.TypeA); len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "10.96.0.20") || m.Question[0].Name != "Web.Shop.svc.cluster.LOCAL." {
		t.Error(m)
	}
	if m := b.ask("4.3.77.10.in-addr.arpa.", dns.TypePTR); len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "pod.cluster.local.") {
		t.Error(m)
	}
	for _, name := range []string{"example.com.", "notcluster.local.", "4.3.78.10.in-addr.arpa."} {
		if m := b.ask(name, dns.TypeA); len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "192.0.2.1") {
			t.Error(m)
		}
	}
	b.expect("cluster server", 2)
	b.expect("upstream server", 3)
}

func TestAnswersAreKeptForTheirTime(t *testing.T) {
	b := newBench(t)
	b.ask("web.shop.svc.cluster.local.", dns.TypeA)
	b.pass(3 * time.Second)
	if m := b.ask("web.shop.svc.cluster.local.", dns.TypeA); m.Answer[0].Header().Ttl != 2 {
		t.Error(m)
	}
	if n := b.cluster.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	b.pass(2 * time.Second)
	b.ask("web.shop.svc.cluster.local.", dns.TypeA)
	if n := b.cluster.asked.Load(); n != 2 {
		t.Errorf("the server was asked %d times", n)
	}
	// What is not there, as the search list asks for it, is kept as the zone says.
	for range 3 {
		if m := b.ask("example.com.shop.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Error(m)
		}
	}
	b.expect("cluster cache", 3)
	b.pass(11 * time.Second)
	b.ask("example.com.shop.svc.cluster.local.", dns.TypeA)
	b.expect("cluster server", 4)
}

// An alias that leads nowhere is asked for again as soon as a name that is not there:
// what it leads to may be made.
func TestAnAliasOfWhatIsNotThere(t *testing.T) {
	b := newBench(t)
	var made atomic.Bool
	b.cluster = serve(t, func(q dns.Question, m *dns.Msg) {
		m.Answer = []dns.RR{rr(t, "%s 3600 CNAME db.cluster.local.", q.Name)}
		switch {
		case !made.Load():
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "cluster.local. 3600 SOA ns.cluster.local. h.cluster.local. 1 7200 1800 86400 3600")}
		case q.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, rr(t, "db.cluster.local. 3600 A 10.96.0.21"))
		}
	})
	b.r.SetZones([]Zone{{Name: "cluster", Domains: []string{"."}, Servers: []string{b.cluster.address}}})
	if m := b.ask("alias.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Error(m)
	}
	made.Store(true)
	b.pass(negativeTTL + time.Second)
	if m := b.ask("alias.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 2 {
		t.Errorf("what the alias leads to was made half a minute ago: %v", m)
	}
	b.pass(negativeTTL + time.Second)
	b.ask("alias.cluster.local.", dns.TypeA)
	b.expect("cluster cache", 1) // an answer holds as long as it says
	// Nor is there anything of another type, though there is an alias.
	for range 2 {
		b.ask("alias.cluster.local.", dns.TypeAAAA)
		b.pass(negativeTTL + time.Second)
	}
	b.expect("cluster cache", 1)
}

// A server that is slow is waited for where the last answer was that there is none.
func TestWhatWasMadeSinceIsWaitedFor(t *testing.T) {
	b := newBench(t)
	var made atomic.Bool
	b.others = serve(t, func(q dns.Question, m *dns.Msg) {
		if made.Load() {
			m.Answer = []dns.RR{rr(t, "%s 60 A 192.0.2.9", q.Name)}
			return
		}
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{rr(t, "com. 30 SOA ns.com. h.com. 1 7200 1800 86400 30")}
	})
	b.r.SetZones([]Zone{{Name: "upstream", Domains: []string{"."}, Servers: []string{b.others.address}}})
	if m := b.ask("new.example.com.", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Error(m)
	}
	made.Store(true)
	b.pass(time.Minute)
	b.others.slow.Store(int64(patience + patience/2))
	if m := b.ask("new.example.com.", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("told that there is none, a minute after that was so: %v", m)
	}
	b.others.down.Store(true)
	b.pass(2 * time.Minute)
	if m := b.ask("new.example.com.", dns.TypeA); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 30 {
		t.Errorf("no old answer when nobody answers: %v", m)
	}
}

// A server that is away costs nobody an answer that there was, nor time.
func TestOldAnswersWhenNobodyAnswers(t *testing.T) {
	b := newBench(t)
	b.ask("web.shop.svc.cluster.local.", dns.TypeA)
	b.pass(time.Minute)
	b.cluster.down.Store(true)
	began := time.Now()
	m := b.ask("web.shop.svc.cluster.local.", dns.TypeA)
	if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 30 {
		t.Error(m)
	}
	if took := time.Since(began); took < patience || took > patience+time.Second {
		t.Errorf("an old answer after %s", took)
	}
	b.expect("cluster stale", 1)
	// When it is known that nobody answers, nobody waits.
	limit := time.Now().Add(10 * time.Second)
	for took := time.Hour; took > 100*time.Millisecond; {
		if time.Now().After(limit) {
			t.Fatal("every question waits for a server that is away")
		}
		began = time.Now()
		b.ask("web.shop.svc.cluster.local.", dns.TypeA)
		took = time.Since(began)
	}
	if m := b.ask("new.shop.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Error(m)
	}
	b.expect("cluster failed", 1)
	b.cluster.down.Store(false)
	b.pass(rest + time.Second)
	if m := b.ask("web.shop.svc.cluster.local.", dns.TypeA); m.Answer[0].Header().Ttl != 5 {
		t.Error(m)
	}
	b.pass(stale + time.Minute)
	b.cluster.down.Store(true)
	if m := b.ask("web.shop.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Error("an answer of the day before yesterday", m)
	}
}

// The second server is asked when the first one does not answer, or cannot tell.
func TestAnotherServer(t *testing.T) {
	b := newBench(t)
	broken := serve(t, func(_ dns.Question, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
	silent := serve(t, func(dns.Question, *dns.Msg) {})
	silent.down.Store(true)
	b.r.SetZones([]Zone{{Name: "upstream", Domains: []string{"."}, Servers: []string{broken.address, silent.address, b.others.address}}})
	if m := b.ask("example.com.", dns.TypeA); len(m.Answer) != 1 {
		t.Error(m)
	}
}

func TestManyWhoAskAtOnceCostOneQuestion(t *testing.T) {
	b := newBench(t)
	b.others.slow.Store(int64(300 * time.Millisecond))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if m := b.try("example.com.", dns.TypeA, nil); m == nil || len(m.Answer) != 1 {
				t.Error(m)
			}
		})
	}
	all.Wait()
	if n := b.others.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
}

// A long answer comes whole by TCP, and is said to be cut by UDP; who does not speak
// EDNS is not told of it.
func TestLongAnswers(t *testing.T) {
	b := newBench(t)
	const name = "many.shop.svc.cluster.local."
	m := b.ask(name, dns.TypeA)
	m.Compress = true
	if !m.Truncated || m.IsEdns0() != nil || m.Len() > dns.MinMsgSize {
		t.Errorf("%d bytes, truncated %v", m.Len(), m.Truncated)
	}
	if m := b.try(name, dns.TypeA, func(m *dns.Msg, c *dns.Client) { m.SetEdns0(4096, false) }); m == nil || !m.Truncated || m.IsEdns0() == nil {
		t.Error(m)
	}
	if m := b.try(name, dns.TypeA, func(_ *dns.Msg, c *dns.Client) { c.Net = "tcp" }); m == nil || m.Truncated || len(m.Answer) != 200 {
		t.Error(m)
	}
}

func TestWhatIsNotAnswered(t *testing.T) {
	b := newBench(t)
	if m := b.ask("cluster.local.", dns.TypeAXFR); m.Rcode != dns.RcodeRefused {
		t.Error(m)
	}
	if m := b.try("example.com.", dns.TypeA, func(m *dns.Msg, _ *dns.Client) { m.Opcode = dns.OpcodeNotify }); m == nil || m.Rcode == dns.RcodeSuccess {
		t.Error(m)
	}
	b.r.SetZones(nil)
	if m := b.ask("example.com.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Error(m)
	}
}
