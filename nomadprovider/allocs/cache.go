package allocs

import (
	"context"
	"maps"
	"slices"
	"sort"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/internal/nomadstream"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Job is what is known of a pod's job.
type Job struct {
	ID        string
	Name      string // <namespace>/<pod>
	Namespace string // Nomad's
	Stopped   bool
	// CreateIndex tells a job from a later one of the same ID.
	CreateIndex uint64
	// ModifyIndex orders what is heard of the job.
	ModifyIndex uint64
}

// Entry is the view of one pod. It is a copy; the allocations are shared and
// must not be changed.
type Entry struct {
	// Job is the pod's own; without an ID when only companions are left.
	Job Job
	// Allocs are the job's allocations, oldest first.
	Allocs []*api.Allocation
	// Unplaced says why the last evaluation found no place, until one does.
	Unplaced string
	// Companions are the jobs beside the pod's own, by the name in their ID. They
	// have none themselves.
	Companions map[string]Entry
}

// Cache is safe for concurrent use.
type Cache struct {
	cluster string
	log     hclog.Logger
	notify  func(types.UID)

	mu sync.RWMutex
	// jobs are those of each pod, by companion name; its own has none.
	jobs   map[types.UID]map[string]*Entry
	spaces []*space
}

// jobKey is what a job's ID tells: whose it is, and its name if it is a companion.
type jobKey struct {
	uid       types.UID
	companion string
}

func (c *Cache) key(jobID string) (k jobKey, ok bool) {
	k.uid, k.companion, ok = translate.Owner(c.cluster, jobID)
	return k, ok
}

// entry returns what is known of a job, nil for nothing. The caller holds the lock.
func (c *Cache) entry(k jobKey) *Entry { return c.jobs[k.uid][k.companion] }

// forget drops what is known of a job. The caller holds the lock.
func (c *Cache) forget(k jobKey) {
	if delete(c.jobs[k.uid], k.companion); len(c.jobs[k.uid]) == 0 {
		delete(c.jobs, k.uid)
	}
}

// space is the part of the view that one Nomad namespace holds.
type space struct {
	client    *api.Client
	namespace string
	synced    chan struct{}
	once      sync.Once
	mu        sync.Mutex
	failure   error
}

// New makes a cache of the cluster's jobs in namespaces. notify is called,
// without locks held, for every pod whose entry changed.
func New(client *api.Client, namespaces []string, cluster string, notify func(types.UID), log hclog.Logger) *Cache {
	c := &Cache{cluster: cluster, log: log, notify: notify, jobs: map[types.UID]map[string]*Entry{}}
	for _, ns := range namespaces {
		c.spaces = append(c.spaces, &space{client: client, namespace: ns, synced: make(chan struct{})})
	}
	return c
}

// Run keeps the view until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range c.spaces {
		f := &nomadstream.Follower{
			Client:    s.client,
			Namespace: s.namespace,
			Topics: map[api.Topic][]string{
				api.TopicAllocation: {"*"}, api.TopicEvaluation: {"*"}, api.TopicJob: {"*"},
			},
			Log:    c.log,
			List:   func(ctx context.Context) (uint64, error) { return c.list(ctx, s) },
			Handle: c.handle,
			Health: s.health,
		}
		wg.Go(func() { f.Run(ctx) })
	}
	wg.Wait()
}

func (s *space) health(err error) {
	s.mu.Lock()
	s.failure = err
	s.mu.Unlock()
	if err == nil {
		s.once.Do(func() { close(s.synced) })
	}
}

// WaitForSync returns when every namespace has been listed once.
func (c *Cache) WaitForSync(ctx context.Context) error {
	for _, s := range c.spaces {
		select {
		case <-s.synced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Current returns nil when the view follows Nomad now, or why it does not.
func (c *Cache) Current() error {
	for _, s := range c.spaces {
		s.mu.Lock()
		err := s.failure
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Get returns the view of a pod; ok is false when Nomad has no job of it, though
// it may have companions.
func (c *Cache) Get(uid types.UID) (e Entry, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if own := c.jobs[uid][""]; own != nil {
		e, ok = own.copy(), true
	}
	for name, companion := range c.jobs[uid] {
		if name == "" {
			continue
		}
		if e.Companions == nil {
			e.Companions = map[string]Entry{}
		}
		e.Companions[name] = companion.copy()
	}
	return e, ok
}

func (e *Entry) copy() Entry {
	out := *e
	out.Allocs = append([]*api.Allocation(nil), e.Allocs...)
	return out
}

// UIDs are the pods that Nomad has a job of, be it a companion's.
func (c *Cache) UIDs() []types.UID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Keys(c.jobs))
}

// Registered tells the cache of a job that was registered just now, before its
// event arrives, so that nobody registers it a second time.
func (c *Cache) Registered(uid types.UID, j Job) {
	_, companion, _ := translate.Owner(c.cluster, j.ID)
	c.update(jobKey{uid, companion}, func(e *Entry) bool {
		if j.ModifyIndex < e.Job.ModifyIndex {
			return false
		}
		e.Job = j
		return false
	})
}

// drop forgets a job that Nomad has forgotten, unless a later one of the same
// ID has taken its place.
func (c *Cache) drop(k jobKey, createIndex uint64) {
	c.mu.Lock()
	e := c.entry(k)
	gone := e != nil && e.Job.CreateIndex <= createIndex
	if gone {
		c.forget(k)
	}
	c.mu.Unlock()
	if gone {
		c.notify(k.uid)
	}
}

// amend changes the entry of a job that is known. The event of a job comes
// before those of its allocations, and what comes after its end is of no use.
func (c *Cache) amend(k jobKey, change func(*Entry) bool) {
	c.change(k, false, change)
}

// update changes one entry, making it if need be; change returns whether the
// pods room should look.
func (c *Cache) update(k jobKey, change func(*Entry) bool) {
	c.change(k, true, change)
}

func (c *Cache) change(k jobKey, create bool, change func(*Entry) bool) {
	c.mu.Lock()
	e := c.entry(k)
	if e == nil {
		if !create {
			c.mu.Unlock()
			return
		}
		e = &Entry{}
		if c.jobs[k.uid] == nil {
			c.jobs[k.uid] = map[string]*Entry{}
		}
		c.jobs[k.uid][k.companion] = e
	}
	tell := change(e)
	c.mu.Unlock()
	if tell {
		c.notify(k.uid)
	}
}

func (e *Entry) putAlloc(a *api.Allocation) bool {
	// Nomad remembers the allocations of a purged job for a while; they are none
	// of the one that has taken its place.
	if a.CreateIndex < e.Job.CreateIndex {
		return false
	}
	a.Job = nil
	for i, old := range e.Allocs {
		if old.ID != a.ID {
			continue
		}
		if old.ModifyIndex > a.ModifyIndex {
			return false
		}
		changed := old.ModifyIndex != a.ModifyIndex
		if a.NetworkStatus == nil {
			a.NetworkStatus = old.NetworkStatus // list stubs carry none
		}
		e.Allocs[i] = a
		return changed
	}
	e.Allocs = append(e.Allocs, a)
	sort.Slice(e.Allocs, func(i, j int) bool { return e.Allocs[i].CreateIndex < e.Allocs[j].CreateIndex })
	e.Unplaced = ""
	return true
}

func (c *Cache) handle(ev nomadstream.Event) {
	var err error
	switch ev.Topic {
	case api.TopicAllocation:
		err = c.handleAlloc(ev)
	case api.TopicEvaluation:
		err = c.handleEval(ev)
	case api.TopicJob:
		err = c.handleJob(ev)
	}
	if err != nil {
		c.log.Error("a Nomad event could not be read", "error", err)
	}
}

// ours saves decoding the events of other people's jobs: the filter keys of
// allocation and evaluation events name the job.
func (c *Cache) ours(ev nomadstream.Event) bool {
	if len(ev.FilterKeys) == 0 {
		return true
	}
	for _, k := range ev.FilterKeys {
		if _, ok := c.key(k); ok {
			return true
		}
	}
	return false
}

func (c *Cache) handleAlloc(ev nomadstream.Event) error {
	if !c.ours(ev) {
		return nil
	}
	a, err := ev.Allocation()
	if err != nil || a == nil {
		return err
	}
	k, ok := c.key(a.JobID)
	if !ok {
		return nil
	}
	c.amend(k, func(e *Entry) bool { return e.putAlloc(a) })
	return nil
}

func (c *Cache) handleEval(ev nomadstream.Event) error {
	if !c.ours(ev) {
		return nil
	}
	v, err := ev.Evaluation()
	if err != nil || v == nil {
		return err
	}
	k, ok := c.key(v.JobID)
	if !ok {
		return nil
	}
	m := v.FailedTGAllocs[translate.GroupName]
	if m == nil {
		return nil
	}
	c.amend(k, func(e *Entry) bool { return e.setUnplaced(translate.UnplacedReason(m)) })
	return nil
}

// setUnplaced counts only while no allocation runs.
func (e *Entry) setUnplaced(reason string) bool {
	for _, a := range e.Allocs {
		if !a.ClientTerminalStatus() {
			return false
		}
	}
	changed := e.Unplaced != reason
	e.Unplaced = reason
	return changed
}

func (c *Cache) handleJob(ev nomadstream.Event) error {
	k, ok := c.key(ev.Key)
	if !ok {
		return nil
	}
	j, deleted, err := ev.Job()
	if err != nil || j == nil {
		return err
	}
	if deleted {
		c.drop(k, j.CreateIndex)
		return nil
	}
	c.update(k, func(e *Entry) bool { return e.putJob(fromHead(j)) })
	return nil
}

func (e *Entry) putJob(j Job) bool {
	if j.ModifyIndex < e.Job.ModifyIndex {
		return false
	}
	changed := e.Job.Stopped != j.Stopped || e.Job.ID != j.ID
	e.Job = j
	return changed
}

func fromHead(j *nomadstream.JobHead) Job {
	return Job{ID: j.ID, Name: j.Name, Namespace: j.Namespace, Stopped: j.Stop, CreateIndex: j.CreateIndex, ModifyIndex: j.ModifyIndex}
}
