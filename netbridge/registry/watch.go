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
	// Parts is 1, or [Parts]: then each change brings only a part of the records, for as
	// many times the number of queries that wait at Consul.
	Parts int
	// Handle takes each list, from one goroutine.
	Handle func(List)
	// Health is told nil or what is wrong with Consul, whenever it was asked.
	Health func(error)
}

// Run returns when ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	dirs := w.dirs()
	type update struct {
		of int
		answer
	}
	updates := make(chan update)
	backs := w.pings(ctx, len(dirs))
	for i, dir := range dirs {
		go w.follow(ctx, dir, backs[i], func(a answer) {
			select {
			case updates <- update{i, a}:
			case <-ctx.Done():
			}
		})
	}
	parts, heard := make([]part, len(dirs)), 0
	var known map[fabric.ID]fabric.Node
	var doubt <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-doubt:
		case u := <-updates:
			if parts[u.of].Nodes == nil {
				heard++
			}
			parts[u.of] = w.part(u.answer)
		}
		switch {
		case heard < len(dirs):
		case len(dirs) == 1:
			w.Handle(w.whole(parts[0]))
		default:
			l := w.merge(ctx, parts, known)
			doubt = nil
			if l.Incomplete == nil {
				known = l.Nodes
			} else {
				// What ends it may wake none of the queries.
				doubt = time.After(maxWatchWait)
			}
			w.Handle(l)
		}
	}
}

// follow asks for one directory until ctx ends, and hands on each answer that is not
// like the last.
func (w *Watcher) follow(ctx context.Context, dir string, again <-chan struct{}, handle func(answer)) {
	var index uint64
	var last answer
	backoff := interval
	pace := rate.NewLimiter(rate.Every(interval), burst)
	for pace.Wait(ctx) == nil {
		a, err := w.ask(ctx, dir, index, again)
		if errors.Is(err, errAgain) {
			index = 0
			continue
		}
		if err != nil {
			index, last = 0, answer{}
			w.Health(err)
			sleep(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, maxWatchWait)
			continue
		}
		backoff = interval
		w.Health(nil)
		at := a.meta.LastIndex
		if at < index {
			// Restored from a snapshot, or tombstones reaped: a greater index may
			// never come.
			index = 0
			continue
		}
		// The index alone does not tell: a tree that was deleted from above a part leaves
		// the part's as it was, and an empty part's is that of all keys
		// (agent/consul/state/kvs.go, kvsListTxn).
		if !a.same(last) {
			handle(a)
		}
		index, last = max(at, 1), a
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// pings returns channels that have something in them when Consul is back after it
// was away, which is when a query that hangs is to be given up.
func (w *Watcher) pings(ctx context.Context, n int) []chan struct{} {
	backs := make([]chan struct{}, n)
	for i := range backs {
		backs[i] = make(chan struct{}, 1)
	}
	go func() {
		away := false
		for ctx.Err() == nil {
			err := w.Registry.Ping(ctx)
			if err != nil && ctx.Err() == nil {
				w.Health(err)
			}
			if err == nil && away {
				for _, back := range backs {
					select {
					case back <- struct{}{}:
					default:
					}
				}
			}
			away = err != nil
			sleep(ctx, pingInterval)
		}
	}()
	return backs
}

// errAgain says that a query was given up because Consul is back.
var errAgain = errors.New("consul is back")

// ask is one blocking query.
func (w *Watcher) ask(ctx context.Context, dir string, index uint64, again <-chan struct{}) (answer, error) {
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
	// Any server may say what is new since index, and does not answer before it knows.
	// Where there is none to go by, one that has just started, or lags behind, would take
	// away who has come since: that is the leader's to tell.
	q := (&api.QueryOptions{AllowStale: index > 0, WaitIndex: index, WaitTime: wait}).WithContext(ctx)
	pairs, meta, err := w.Registry.client.KV().List(w.Registry.prefix+dir, q)
	if err != nil && context.Cause(ctx) == errAgain {
		err = errAgain
	}
	return answer{pairs, meta}, err
}

// whole is the list of one part that has all there is.
func (w *Watcher) whole(p part) List {
	l := p.List
	if l.Incomplete == nil && !p.sentinel {
		l.Incomplete = fmt.Errorf("%s%s is missing", w.Registry.prefix, sentinel)
	}
	w.settle(&l)
	return l
}

// part is what one answer has, and whether Consul vouches for it.
type part struct {
	List
	sentinel bool
}

func (w *Watcher) part(a answer) part {
	l := part{List: List{Nodes: map[fabric.ID]fabric.Node{}, Broken: map[string]error{}, Index: a.meta.LastIndex}}
	for _, p := range a.pairs {
		key := strings.TrimPrefix(p.Key, w.Registry.prefix)
		if key == sentinel {
			l.sentinel = true
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
	switch {
	case !a.meta.KnownLeader:
		l.Incomplete = errors.New("consul knows no leader")
	case a.meta.ResultsFilteredByACLs:
		l.Incomplete = fmt.Errorf("the token may not read all of %snodes/", w.Registry.prefix)
	}
	return l
}

// settle looks at what a list has as a whole.
func (w *Watcher) settle(l *List) {
	_, own := l.Nodes[w.Self]
	switch {
	case l.Incomplete != nil:
	case !own:
		l.Incomplete = fmt.Errorf("this node's own record, nodes/%s, %w", w.Self, ErrNoRecord)
	case len(l.Broken) > 0:
		l.Incomplete = fmt.Errorf("%d records cannot be read", len(l.Broken))
	}
}
