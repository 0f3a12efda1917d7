package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/time/rate"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

const (
	// wait is how long Consul holds a query that has nothing new.
	wait = time.Minute
	// grace is what Consul adds to it at most (wait/16, agent/consul/rpc.go) and
	// the way there and back.
	grace = wait/16 + 5*time.Second
	// interval is the time between two lists in the long run: every change brings
	// all of it. So many may come at once before that holds.
	interval = 100 * time.Millisecond
	burst    = 5
	// pingInterval is how often Consul is asked whether it is there: a blocking
	// query whose packets are lost says nothing for a minute.
	pingInterval = 5 * time.Second
	maxWatchWait = 5 * time.Second
)

// List is what is announced.
type List struct {
	Nodes map[fabric.ID]fabric.Node
	// Incomplete says why what is missing must not be taken for gone; nil if the
	// list is all there is.
	Incomplete error
	// Broken are the keys whose values are no records.
	Broken map[string]error
	Index  uint64
}

// ErrNoRecord is in what a list lacks that is whole but for the node that asks.
var ErrNoRecord = errors.New("is missing")

// Watcher follows what the nodes of a fabric announce.
type Watcher struct {
	Registry *Registry
	// Self must be in a complete list.
	Self fabric.ID
	// Handle takes each list, from one goroutine.
	Handle func(List)
	// Health is told nil or what is wrong with Consul, whenever it was asked.
	Health func(error)
}

// Run returns when ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	var index uint64
	backoff := interval
	again := w.pings(ctx)
	pace := rate.NewLimiter(rate.Every(interval), burst)
	for pace.Wait(ctx) == nil {
		list, err := w.list(ctx, index, again)
		if errors.Is(err, errAgain) {
			index = 0
			continue
		}
		if err != nil {
			index = 0
			w.Health(err)
			sleep(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, maxWatchWait)
			continue
		}
		backoff = interval
		w.Health(nil)
		if list.Index < index {
			// Restored from a snapshot, or tombstones reaped: a greater index may
			// never come.
			index = 0
			continue
		}
		if list.Index != index || index == 0 {
			w.Handle(list)
		}
		index = max(list.Index, 1)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// pings returns a channel that has something in it when Consul is back after it
// was away, which is when a query that hangs is to be given up.
func (w *Watcher) pings(ctx context.Context) <-chan struct{} {
	back := make(chan struct{}, 1)
	go func() {
		away := false
		for ctx.Err() == nil {
			err := w.Registry.Ping(ctx)
			if err != nil && ctx.Err() == nil {
				w.Health(err)
			}
			if err == nil && away {
				select {
				case back <- struct{}{}:
				default:
				}
			}
			away = err != nil
			sleep(ctx, pingInterval)
		}
	}()
	return back
}

// errAgain says that a query was given up because Consul is back.
var errAgain = errors.New("consul is back")

// list is one blocking query.
func (w *Watcher) list(ctx context.Context, index uint64, again <-chan struct{}) (List, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+grace)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go func() {
		select {
		case <-again:
			giveUp(errAgain)
		case <-ctx.Done():
		}
	}()
	q := (&api.QueryOptions{AllowStale: true, WaitIndex: index, WaitTime: wait}).WithContext(ctx)
	pairs, meta, err := w.Registry.client.KV().List(w.Registry.prefix+"nodes/", q)
	if err != nil {
		if context.Cause(ctx) == errAgain {
			err = errAgain
		}
		return List{}, err
	}
	return w.read(pairs, meta), nil
}

func (w *Watcher) read(pairs api.KVPairs, meta *api.QueryMeta) List {
	l := List{Nodes: map[fabric.ID]fabric.Node{}, Broken: map[string]error{}, Index: meta.LastIndex}
	kept := false
	for _, p := range pairs {
		key := strings.TrimPrefix(p.Key, w.Registry.prefix)
		if key == sentinel {
			kept = true
			continue
		}
		id := fabric.ID(strings.TrimPrefix(key, "nodes/"))
		var n fabric.Node
		if err := json.Unmarshal(p.Value, &n); err != nil {
			l.Broken[key] = err
			continue
		}
		l.Nodes[id] = n
	}
	switch _, own := l.Nodes[w.Self]; {
	case !meta.KnownLeader:
		l.Incomplete = errors.New("consul knows no leader")
	case meta.ResultsFilteredByACLs:
		l.Incomplete = fmt.Errorf("the token may not read all of %snodes/", w.Registry.prefix)
	case !kept:
		l.Incomplete = fmt.Errorf("%s%s is missing", w.Registry.prefix, sentinel)
	case !own:
		l.Incomplete = fmt.Errorf("this node's own record, nodes/%s, %w", w.Self, ErrNoRecord)
	case len(l.Broken) > 0:
		l.Incomplete = fmt.Errorf("%d records cannot be read", len(l.Broken))
	}
	return l
}
