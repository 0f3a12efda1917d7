package follow

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"
)

const (
	// wait is how long Consul holds a query that has nothing new.
	wait = time.Minute
	// grace is what Consul adds to it at most (wait/16, agent/consul/rpc.go) and
	// the way there and back.
	grace = wait/16 + 5*time.Second
	// interval is the time between two answers in the long run, burst how many may
	// come at once before that.
	interval   = 100 * time.Millisecond
	burst      = 5
	maxBackoff = 5 * time.Second
)

// ErrPartial says that the token may not read all of an answer.
var ErrPartial = errors.New("the token may not read all of the answer")

// ErrNoLeader says that nobody vouches for an answer.
var ErrNoLeader = errors.New("consul knows no leader")

// Run asks until ctx ends. handle is given, from one goroutine, each answer that is
// whole, and whatever keeps one from being.
func Run[T any](ctx context.Context, ask func(*api.QueryOptions) (T, *api.QueryMeta, error), handle func(T, error)) {
	var index uint64
	backoff := interval
	pace := rate.NewLimiter(rate.Every(interval), burst)
	for pace.Wait(ctx) == nil {
		answer, at, err := once(ctx, index, ask)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			handle(answer, err)
			index = 0
			pause(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, maxBackoff)
			continue
		case at < index:
			// Restored from a snapshot, or emptied: a greater index may never come.
			index = 0
			continue
		case at != index || index == 0:
			handle(answer, nil)
		}
		backoff, index = interval, max(at, 1)
	}
}

func once[T any](ctx context.Context, index uint64, ask func(*api.QueryOptions) (T, *api.QueryMeta, error)) (T, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+grace)
	defer cancel()
	answer, meta, err := ask((&api.QueryOptions{WaitIndex: index, WaitTime: wait}).WithContext(ctx))
	if err == nil && meta.QueryBackend == api.QueryBackendStreaming {
		// So Consul answers blocking queries for a service's health
		// (agent/rpcclient/health/health.go). Such an answer says neither that there is a leader nor that rights have cut it:
		// it only wakes.
		answer, meta, err = ask((&api.QueryOptions{}).WithContext(ctx))
	}
	switch {
	case err != nil:
		return answer, 0, err
	case !meta.KnownLeader:
		return answer, 0, ErrNoLeader
	case meta.ResultsFilteredByACLs:
		return answer, 0, ErrPartial
	}
	return answer, meta.LastIndex, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
