package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

const (
	// attempt bounds one question to one server. A pod's resolver waits five seconds
	// (resolv.conf(5)).
	attempt = 1500 * time.Millisecond
	// patience is how long a pod that could have an old answer waits for a new one
	// (RFC 8767, 5, names 1.8 s).
	patience = 500 * time.Millisecond
	// udpSize is what passes without fragments (RFC 9715).
	udpSize = 1232
)

// Where an answer came from, as metrics tell it.
const (
	FromServer = "server"
	FromCache  = "cache"
	FromStale  = "stale"
	Failed     = "failed"
)

// Resolver answers pods. SetZones and ServeDNS may be called at any time.
type Resolver struct {
	// Count is told of every answer: its zone and where it came from.
	Count func(zone, from string)
	Log   hclog.Logger

	zones   atomic.Pointer[[]Zone]
	cache   *cache
	flights singleflight.Group
}

// New needs SetZones before it can answer.
func New(log hclog.Logger, count func(zone, from string)) *Resolver {
	r := &Resolver{Count: count, Log: log, cache: newCache()}
	r.SetZones(nil)
	return r
}

// SetZones are searched in their order.
func (r *Resolver) SetZones(zones []Zone) { r.zones.Store(&zones) }

// Serve listens at the address by UDP and TCP, whether the machine has it yet or
// not, until ctx ends.
func (r *Resolver) Serve(ctx context.Context, address string) error {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }); e != nil {
			return e
		}
		return err
	}}
	packets, err := lc.ListenPacket(ctx, "udp4", address)
	if err != nil {
		return fmt.Errorf("listen for DNS: %w", err)
	}
	conns, err := lc.Listen(ctx, "tcp4", address)
	if err != nil {
		_ = packets.Close() // nothing is lost with it
		return fmt.Errorf("listen for DNS: %w", err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets}, {Listener: conns}} {
		s.Handler = r
		context.AfterFunc(ctx, func() { _ = s.Shutdown() }) // it may have ended by itself
		go func() {
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				r.Log.Error("does not answer DNS any more", "error", err)
			}
		}()
	}
	return nil
}

// ServeDNS answers one question.
func (r *Resolver) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	if len(req.Question) != 1 || req.Opcode != dns.OpcodeQuery {
		reply(w, req, new(dns.Msg).SetRcode(req, dns.RcodeNotImplemented))
		return
	}
	switch req.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		reply(w, req, new(dns.Msg).SetRcode(req, dns.RcodeRefused))
		return
	}
	zones := *r.zones.Load()
	zone := find(zones, dns.CanonicalName(req.Question[0].Name))
	if zone == nil || len(zone.Servers) == 0 {
		reply(w, req, new(dns.Msg).SetRcode(req, dns.RcodeServerFailure))
		return
	}
	m, from := r.resolve(req, zone)
	if m == nil {
		m, from = new(dns.Msg).SetRcode(req, dns.RcodeServerFailure), Failed
	}
	r.Count(zone.Name, from)
	reply(w, req, m)
}

// reply makes an answer that was found one to this question.
func reply(w dns.ResponseWriter, req, m *dns.Msg) {
	m.Id, m.Response, m.RecursionDesired, m.RecursionAvailable = req.Id, true, req.RecursionDesired, true
	m.Question = req.Question // as it was written
	size := dns.MinMsgSize
	if opt := req.IsEdns0(); opt != nil {
		m.SetEdns0(udpSize, opt.Do())
		size = max(size, min(int(opt.UDPSize()), udpSize))
	}
	if _, udp := w.LocalAddr().(*net.UDPAddr); !udp {
		size = dns.MaxMsgSize
	}
	m.Truncate(size)
	_ = w.WriteMsg(m) // who asked is gone, or asks again
}

func asked(req *dns.Msg) question {
	q := question{dns.CanonicalName(req.Question[0].Name), req.Question[0].Qtype, req.Question[0].Qclass, false, req.CheckingDisabled}
	if opt := req.IsEdns0(); opt != nil {
		q.dnssec = opt.Do()
	}
	return q
}

// resolve returns nil when there is no answer, not even an old one.
func (r *Resolver) resolve(req *dns.Msg, zone *Zone) (*dns.Msg, string) {
	q := asked(req)
	have, old, rests := r.cache.get(q)
	switch {
	case rests:
		return have, FromStale
	case have != nil && !old:
		return have, FromCache
	}
	// Not the asker's own time: the answer is for all who ask meanwhile, and for the
	// cache when nobody waits any more.
	flight := r.flights.DoChan(fmt.Sprint(zone.Servers, q), func() (any, error) {
		m, err := ask(zone.Servers, q)
		if err != nil {
			r.cache.unanswered(q)
			return nil, err
		}
		r.cache.put(q, m)
		return m, nil
	})
	var late <-chan time.Time
	// That there was none the last time is no answer to give to who would only have to
	// wait: it may have been made since, and a first answer from far away takes longer.
	if have != nil && !negative(q, have) {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case done := <-flight:
		if done.Err == nil {
			return done.Val.(*dns.Msg).Copy(), FromServer
		}
		r.Log.Debug("no answer", "name", q.name, "zone", zone.Name, "error", done.Err)
	case <-late:
	}
	if have != nil {
		return have, FromStale
	}
	return nil, Failed
}

var errServer = errors.New("the server could not tell")

// ask goes from server to server, twice: the first of them may have lost a packet.
func ask(servers []string, q question) (*dns.Msg, error) {
	m := &dns.Msg{Question: []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.qclass}}}
	m.RecursionDesired, m.CheckingDisabled = true, q.unchecked
	m.SetEdns0(udpSize, q.dnssec)
	var errs []error
	tries := slices.Concat(servers, servers)
	for _, server := range tries[:min(len(tries), 3)] {
		answer, err := exchange(m, server)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", server, err))
	}
	return nil, errors.Join(errs...)
}

// exchange asks by UDP, and by TCP when the answer was too long. What the server
// could not tell is an error: another one may, or an old answer is better.
func exchange(m *dns.Msg, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), attempt)
	defer cancel()
	m = m.Copy()
	m.Id = dns.Id()
	answer, _, err := (&dns.Client{UDPSize: udpSize, Timeout: attempt}).ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		answer, _, err = (&dns.Client{Net: "tcp", Timeout: attempt}).ExchangeContext(ctx, m, server)
	}
	if err != nil {
		return nil, err
	}
	switch answer.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return nil, fmt.Errorf("%w: %s", errServer, dns.RcodeToString[answer.Rcode])
	}
	answer.Extra = slices.DeleteFunc(answer.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return answer, nil
}
