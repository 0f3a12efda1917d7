package node

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/internal/nomadstream"
)

const (
	pingInterval = 5 * time.Second
	pingTimeout  = 5 * time.Second
	// streamGrace is how long the event stream may be interrupted before that
	// counts as Nomad being away: it ends for harmless reasons too, such as a
	// server that restarts behind a load balancer.
	streamGrace = 3 * time.Second
	// infoWorkers bounds the calls for client details that run at once after a
	// list; Nomad allows 100 connections per address by default.
	infoWorkers = 8
)

// Clients is a live view of the Nomad clients that one connection sees, and of
// Nomad's health. Its methods may be called from any goroutine.
type Clients struct {
	nomad *api.Client
	log   hclog.Logger
	clock clock.WithTicker

	mu     sync.Mutex
	byID   map[string]ClientInfo
	synced bool

	pinged    bool
	pingErr   error
	streamErr error
	streamEnd time.Time // when streamErr was first seen

	healthy bool
	since   time.Time
	reason  string

	subs map[chan struct{}]struct{}
}

// NewClients makes a view that is empty, and unhealthy, until Run.
func NewClients(nomad *api.Client, log hclog.Logger, clk clock.WithTicker) *Clients {
	return &Clients{
		nomad: nomad, log: log, clock: clk,
		byID:   map[string]ClientInfo{},
		since:  clk.Now(),
		reason: "Nomad has not answered yet",
		subs:   map[chan struct{}]struct{}{},
	}
}

// Run follows Nomad until ctx ends.
func (c *Clients) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.pingLoop(ctx) })
	f := &nomadstream.Follower{
		Client: c.nomad,
		Topics: map[api.Topic][]string{api.TopicNode: {"*"}},
		Log:    c.log,
		List:   c.list,
		Handle: c.handle,
		Health: c.streamHealth,
	}
	f.Run(ctx)
}

// Healthy tells whether Nomad answers, since when that has been so, and why
// not.
func (c *Clients) Healthy() (ok bool, since time.Time, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.healthy, c.since, c.reason
}

// Synced tells whether the clients have ever been listed.
func (c *Clients) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// Client returns the client of that ID.
func (c *Clients) Client(nodeID string) (ClientInfo, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, ok := c.byID[nodeID]
	return info, ok
}

// List returns all clients of all pools, by name and ID.
func (c *Clients) List() []ClientInfo {
	c.mu.Lock()
	out := make([]ClientInfo, 0, len(c.byID))
	for _, info := range c.byID {
		out = append(out, info)
	}
	c.mu.Unlock()
	sort.Slice(out, func(i, j int) bool {
		if out[i].Name != out[j].Name {
			return out[i].Name < out[j].Name
		}
		return out[i].ID < out[j].ID
	})
	return out
}

// Subscribe returns a channel that gets a value after every change of clients
// or health, several changes being one value at times; stop ends it.
func (c *Clients) Subscribe() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[ch] = struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.subs, ch)
	}
}

func (c *Clients) notifyLocked() {
	for ch := range c.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// list replaces the view. The list itself carries no attributes, so details
// are asked for, of those clients only that have changed since they were last
// seen.
func (c *Clients) list(ctx context.Context) (uint64, error) {
	stubs, meta, err := c.nomad.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("list Nomad's clients: %w", err)
	}
	next := make(map[string]ClientInfo, len(stubs))
	var missing []string
	c.mu.Lock()
	for _, s := range stubs {
		if known, ok := c.byID[s.ID]; ok && known.index == s.ModifyIndex {
			next[s.ID] = known
		} else {
			missing = append(missing, s.ID)
		}
	}
	c.mu.Unlock()
	infos, err := c.infos(ctx, missing)
	if err != nil {
		return 0, err
	}
	for _, info := range infos {
		next[info.ID] = info
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID, c.synced = next, true
	c.notifyLocked()
	return meta.LastIndex, nil
}

func (c *Clients) infos(ctx context.Context, ids []string) ([]ClientInfo, error) {
	var (
		mu   sync.Mutex
		out  []ClientInfo
		errs error
		wg   sync.WaitGroup
		work = make(chan string)
	)
	for range min(infoWorkers, len(ids)) {
		wg.Go(func() {
			for id := range work {
				n, _, err := c.nomad.Nodes().Info(id, (&api.QueryOptions{}).WithContext(ctx))
				mu.Lock()
				switch {
				case err == nil:
					out = append(out, clientInfo(n))
				case isStatus(err, 404): // gone since the list
				case errs == nil:
					errs = fmt.Errorf("read Nomad client %s: %w", id, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		work <- id
	}
	close(work)
	wg.Wait()
	return out, errs
}

// handle takes a Node event. Its payload is the whole client node after the
// change, or before it for a deregistration (nomad/state/events.go).
func (c *Clients) handle(e nomadstream.Event) {
	n, err := e.Node()
	if err != nil || n == nil || n.ID == "" {
		c.log.Warn("a Nomad client's event could not be read", "client", e.Key, "type", e.Type, "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.Type == "NodeDeregistration" {
		delete(c.byID, n.ID)
	} else if known, ok := c.byID[n.ID]; !ok || known.index <= n.ModifyIndex {
		c.byID[n.ID] = clientInfo(n)
	}
	c.notifyLocked()
}

func (c *Clients) streamHealth(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.streamErr == nil {
		c.streamEnd = c.clock.Now()
	}
	c.streamErr = err
	c.judgeLocked()
}

func (c *Clients) pingLoop(ctx context.Context) {
	t := c.clock.NewTicker(pingInterval)
	defer t.Stop()
	for {
		err := c.ping(ctx)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.pinged, c.pingErr = true, err
		c.judgeLocked()
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-t.C():
		}
	}
}

// ping asks for the leader's address.
func (c *Clients) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	var leader string
	_, err := c.nomad.Raw().Query("/v1/status/leader", &leader, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer from Nomad within %s", pingTimeout)
	case err != nil:
		return fmt.Errorf("ask Nomad for its leader: %w", err)
	case leader == "":
		return errors.New("no leader in Nomad")
	}
	return nil
}

// judgeLocked turns what is known into one verdict and tells of its change.
func (c *Clients) judgeLocked() {
	healthy, reason := true, ""
	switch {
	case c.pingErr != nil:
		healthy, reason = false, c.pingErr.Error()
	case c.streamErr != nil && (!c.synced || c.clock.Since(c.streamEnd) >= streamGrace):
		healthy, reason = false, c.streamErr.Error()
	case !c.synced || !c.pinged:
		healthy, reason = false, "Nomad has not answered yet"
	}
	changed := healthy != c.healthy
	if changed {
		c.since = c.clock.Now()
		if healthy {
			c.log.Info("Nomad is reachable")
		} else {
			c.log.Warn("Nomad is not reachable", "reason", reason)
		}
	}
	if changed || reason != c.reason {
		c.healthy, c.reason = healthy, reason
		c.notifyLocked()
	}
}

// isStatus tells whether err is Nomad's answer with that HTTP status.
func isStatus(err error, code int) bool {
	var u api.UnexpectedResponseError
	return errors.As(err, &u) && u.StatusCode() == code
}
