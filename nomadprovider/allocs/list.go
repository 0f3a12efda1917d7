package allocs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	pageSize = 500
	// infoAtOnce bounds the single reads of a list.
	infoAtOnce = 16
)

// list replaces what the cache holds of one Nomad namespace and tells of every
// pod whose view changed, those that vanished included.
func (c *Cache) list(ctx context.Context, s *space) (uint64, error) {
	jobs, index, err := c.listJobs(ctx, s)
	if err != nil {
		return 0, fmt.Errorf("list Nomad's jobs in namespace %q: %w", s.namespace, err)
	}
	allocs, err := c.listAllocs(ctx, s)
	if err != nil {
		return 0, fmt.Errorf("list Nomad's allocations in namespace %q: %w", s.namespace, err)
	}
	unplaced, err := c.listUnplaced(ctx, s, jobs, allocs)
	if err != nil {
		return 0, err
	}
	for k, j := range jobs {
		c.update(k, func(e *Entry) bool {
			tell := e.putJob(j)
			for _, a := range allocs[k] {
				tell = e.putAlloc(a) || tell
			}
			if reason := unplaced[k]; reason != "" {
				tell = e.setUnplaced(reason) || tell
			}
			return tell
		})
	}
	c.dropMissing(s, jobs, index)
	return index, nil
}

// dropMissing forgets the jobs that were in the namespace and are not any more.
func (c *Cache) dropMissing(s *space, jobs map[jobKey]Job, index uint64) {
	var gone []jobKey
	c.mu.Lock()
	for uid, known := range c.jobs {
		for companion, e := range known {
			k := jobKey{uid, companion}
			if _, ok := jobs[k]; ok || e.Job.Namespace != s.namespace {
				continue
			}
			// A job registered after the list was taken is not missing.
			if e.Job.ModifyIndex <= index {
				gone = append(gone, k)
			}
		}
	}
	for _, k := range gone {
		c.forget(k)
	}
	c.mu.Unlock()
	for _, k := range gone {
		c.notify(k.uid)
	}
}

// listJobs returns the jobs of all pods, and the index that the first list was
// taken at.
func (c *Cache) listJobs(ctx context.Context, s *space) (map[jobKey]Job, uint64, error) {
	out := map[jobKey]Job{}
	var index uint64
	for _, prefix := range translate.JobIDPrefixes(c.cluster) {
		q := (&api.QueryOptions{Namespace: s.namespace, Prefix: prefix, PerPage: pageSize}).WithContext(ctx)
		for more := true; more; more = q.NextToken != "" {
			stubs, meta, err := s.client.Jobs().List(q)
			if err != nil {
				return nil, 0, err
			}
			if index == 0 {
				index = meta.LastIndex
			}
			for _, j := range stubs {
				if k, ok := c.key(j.ID); ok {
					out[k] = Job{ID: j.ID, Name: j.Name, Namespace: s.namespace, Stopped: j.Stop, CreateIndex: j.CreateIndex, ModifyIndex: j.ModifyIndex}
				}
			}
			q.NextToken = meta.NextToken
		}
	}
	return out, index, nil
}

func (c *Cache) listAllocs(ctx context.Context, s *space) (map[jobKey][]*api.Allocation, error) {
	q := (&api.QueryOptions{
		Namespace: s.namespace,
		Filter:    fmt.Sprintf("JobID matches %q", "^("+strings.Join(translate.JobIDPrefixes(c.cluster), "|")+")"),
		PerPage:   pageSize,
		Params:    map[string]string{"task_states": "true"},
	}).WithContext(ctx)
	out := map[jobKey][]*api.Allocation{}
	for {
		stubs, meta, err := s.client.Allocations().List(q)
		if err != nil {
			return nil, err
		}
		page, err := c.fill(ctx, s, stubs)
		if err != nil {
			return nil, err
		}
		for _, a := range page {
			if k, ok := c.key(a.JobID); ok {
				out[k] = append(out[k], a)
			}
		}
		if q.NextToken = meta.NextToken; q.NextToken == "" {
			return out, nil
		}
	}
}

// fill turns list stubs into allocations. Stubs lack the network status, so
// those of running allocations that the cache has not seen yet are read.
func (c *Cache) fill(ctx context.Context, s *space, stubs []*api.AllocationListStub) ([]*api.Allocation, error) {
	out := make([]*api.Allocation, len(stubs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(infoAtOnce)
	for i, stub := range stubs {
		if stub.ClientStatus != api.AllocClientStatusRunning && stub.ClientStatus != api.AllocClientStatusUnknown || c.hasNetwork(stub) {
			out[i] = fromStub(stub)
			continue
		}
		g.Go(func() error {
			a, _, err := s.client.Allocations().Info(stub.ID, (&api.QueryOptions{Namespace: s.namespace}).WithContext(gctx))
			if err != nil {
				var answer api.UnexpectedResponseError
				if !errors.As(err, &answer) || answer.StatusCode() != http.StatusNotFound {
					return err
				}
				a = fromStub(stub) // collected meanwhile
			}
			out[i] = a
			return nil
		})
	}
	return out, g.Wait()
}

// hasNetwork says whether the network status of an allocation need not be read:
// it is known, or the allocation is a companion's, which has no network of its own.
func (c *Cache) hasNetwork(stub *api.AllocationListStub) bool {
	k, _ := c.key(stub.JobID)
	if k.companion != "" {
		return true
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e := c.entry(k); e != nil {
		for _, a := range e.Allocs {
			if a.ID == stub.ID && a.NetworkStatus != nil {
				return true
			}
		}
	}
	return false
}

func fromStub(s *api.AllocationListStub) *api.Allocation {
	return &api.Allocation{
		ID: s.ID, Namespace: s.Namespace, EvalID: s.EvalID, Name: s.Name, NodeID: s.NodeID, NodeName: s.NodeName,
		JobID: s.JobID, TaskGroup: s.TaskGroup, AllocatedResources: s.AllocatedResources,
		DesiredStatus: s.DesiredStatus, DesiredDescription: s.DesiredDescription,
		ClientStatus: s.ClientStatus, ClientDescription: s.ClientDescription, TaskStates: s.TaskStates,
		NextAllocation: s.NextAllocation, PreemptedByAllocation: s.PreemptedByAllocation,
		CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex, CreateTime: s.CreateTime, ModifyTime: s.ModifyTime,
	}
}

// listUnplaced asks for the evaluations of running jobs without an allocation.
func (c *Cache) listUnplaced(ctx context.Context, s *space, jobs map[jobKey]Job, allocs map[jobKey][]*api.Allocation) (map[jobKey]string, error) {
	out := map[jobKey]string{}
	for k, j := range jobs {
		if j.Stopped || len(allocs[k]) > 0 {
			continue
		}
		evals, _, err := s.client.Jobs().Evaluations(j.ID, (&api.QueryOptions{Namespace: s.namespace}).WithContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read the evaluations of job %s: %w", j.ID, err)
		}
		var latest uint64
		for _, e := range evals {
			if m := e.FailedTGAllocs[translate.GroupName]; m != nil && e.ModifyIndex >= latest {
				latest, out[k] = e.ModifyIndex, translate.UnplacedReason(m)
			}
		}
	}
	return out, nil
}
