package resolver

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/lru"
)

const (
	// entries is how many answers are kept.
	entries = 10000
	// maxTTL bounds what a server may ask for, negativeTTL what is not there (RFC
	// 2308, 5, allows more; a Service that is made is to be found soon).
	maxTTL      = time.Hour
	negativeTTL = 30 * time.Second
	// stale is how long an answer is kept after its time, staleTTL what is then told
	// (RFC 8767, 4 and 5).
	stale    = 24 * time.Hour
	staleTTL = 30 * time.Second
	// rest is how long an old answer is given without asking again, when nobody
	// answered.
	rest = 5 * time.Second
)

// question is what an answer is kept under.
type question struct {
	name   string
	qtype  uint16
	qclass uint16
	// dnssec and unchecked change what a server answers (DO and CD).
	dnssec, unchecked bool
}

// kept is an answer without its OPT record.
type kept struct {
	msg     *dns.Msg
	stored  time.Time
	expires time.Time
	// rests is until when nobody is asked, in nanoseconds since 1970.
	rests atomic.Int64
}

type cache struct {
	lru *lru.Cache
	now func() time.Time
}

func newCache() *cache { return &cache{lru.New(entries), time.Now} }

// put keeps what may be kept: answers, and that there is none.
func (c *cache) put(q question, m *dns.Msg) {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return
	}
	now := c.now()
	c.lru.Add(q, &kept{msg: m, stored: now, expires: now.Add(ttl(q, m))})
}

// unanswered lets an old answer rest.
func (c *cache) unanswered(q question) {
	if v, ok := c.lru.Get(q); ok {
		v.(*kept).rests.Store(c.now().Add(rest).UnixNano())
	}
}

// ttl is how long an answer holds: its shortest-lived record, or what the zone says
// of what is not there (RFC 2308, 5). Without either it holds not at all.
func ttl(q question, m *dns.Msg) time.Duration {
	limit, records := maxTTL, m.Answer
	if negative(q, m) {
		limit = negativeTTL
		// An alias may lead to what is not there.
		records = slices.Clone(m.Answer)
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				limit = min(limit, time.Duration(soa.Minttl)*time.Second)
				records = append(records, rr)
			}
		}
		if len(records) == 0 {
			return 0
		}
	}
	for _, rr := range records {
		limit = min(limit, time.Duration(rr.Header().Ttl)*time.Second)
	}
	return limit
}

// negative says that there is no such name, or nothing of that type at it.
func negative(q question, m *dns.Msg) bool {
	return m.Rcode == dns.RcodeNameError || !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		return q.qtype == dns.TypeANY || rr.Header().Rrtype == q.qtype
	})
}

// get returns an answer as it is now, whether its time is over, and whether it is to
// be given all the same.
func (c *cache) get(q question) (m *dns.Msg, old, rests bool) {
	v, ok := c.lru.Get(q)
	if !ok {
		return nil, false, false
	}
	k := v.(*kept)
	now := c.now()
	if now.After(k.expires.Add(stale)) {
		c.lru.Remove(q)
		return nil, false, false
	}
	old = !now.Before(k.expires)
	m = k.msg.Copy()
	gone := uint32(now.Sub(k.stored) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			switch {
			case old:
				h.Ttl = uint32(staleTTL / time.Second)
			case h.Ttl > gone:
				h.Ttl -= gone
			default:
				h.Ttl = 0
			}
		}
	}
	return m, old, old && now.UnixNano() < k.rests.Load()
}
