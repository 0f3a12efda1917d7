package kubelet

import (
	"net"
	"net/http"
	"sync"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"
)

// Each request with a token that is none costs the API server a TokenReview. An
// address may be wrong failuresBurst times, and then failuresPerSecond.
const (
	failuresPerSecond = 5
	failuresBurst     = 50
	// addressesKept bounds what is remembered, of the addresses that failed last.
	addressesKept = 4096
)

// failures counts the requests that were not authenticated, by address.
type failures struct {
	mu sync.Mutex
	by *lru.Cache
}

func newFailures() *failures { return &failures{by: lru.New(addressesKept)} }

func (f *failures) of(r *http.Request) *rate.Limiter {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.by.Get(host); ok {
		return l.(*rate.Limiter)
	}
	l := rate.NewLimiter(failuresPerSecond, failuresBurst)
	f.by.Add(host, l)
	return l
}
