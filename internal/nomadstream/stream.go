package nomadstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
)

const (
	// heartbeatTimeout is how long a stream may be silent: Nomad sends a
	// heartbeat every 30 s (command/agent/event_endpoint.go).
	heartbeatTimeout = 75 * time.Second
	// listTimeout bounds a list: a Nomad that has gone without a word would
	// otherwise hold it until the kernel gives up.
	listTimeout = 2 * time.Minute
	backoffMin  = 200 * time.Millisecond
	backoffMax  = 5 * time.Second
)

// Event is one event of the stream; see api.Event. Its payload is decoded
// only when asked for.
type Event struct {
	Topic      api.Topic
	Type       string
	Key        string
	Namespace  string
	FilterKeys []string
	Index      uint64
	Payload    json.RawMessage
}

// JobHead is what a Job event is read for; the rest of the job, which may be
// large, is not decoded.
type JobHead struct {
	ID, Name, Namespace      string
	Stop                     bool
	CreateIndex, ModifyIndex uint64
}

type payload struct {
	Allocation *api.Allocation
	Evaluation *api.Evaluation
	Job        *JobHead
	Node       *api.Node
	Deleted    bool
}

func (e *Event) decode() (payload, error) {
	var p payload
	if err := json.Unmarshal(e.Payload, &p); err != nil {
		return p, fmt.Errorf("decode %s event %s: %w", e.Topic, e.Key, err)
	}
	return p, nil
}

// Allocation returns the allocation of an Allocation event; its Job is nil.
func (e *Event) Allocation() (*api.Allocation, error) {
	p, err := e.decode()
	return p.Allocation, err
}

// Evaluation returns the evaluation of an Evaluation event.
func (e *Event) Evaluation() (*api.Evaluation, error) {
	p, err := e.decode()
	return p.Evaluation, err
}

// Job returns the job of a Job event; deleted says that Nomad forgot it,
// purged or collected.
func (e *Event) Job() (j *JobHead, deleted bool, err error) {
	p, err := e.decode()
	return p.Job, p.Deleted, err
}

// Node returns the Nomad client of a Node event.
func (e *Event) Node() (*api.Node, error) {
	p, err := e.decode()
	return p.Node, err
}

// Follower lists and follows until its context ends. List and Handle are
// called from one goroutine, never at once.
type Follower struct {
	Client    *api.Client
	Topics    map[api.Topic][]string
	Namespace string
	Log       hclog.Logger
	// List replaces the view and returns the index it is of.
	List func(ctx context.Context) (index uint64, err error)
	// Handle takes one event.
	Handle func(Event)
	// Health, if set, is told nil when the view is known to be current and the
	// error when it is not.
	Health func(error)

	// silence and patience stand for heartbeatTimeout and listTimeout in tests.
	silence, patience time.Duration
}

// Run returns when ctx ends.
func (f *Follower) Run(ctx context.Context) {
	backoff := backoffMin
	for ctx.Err() == nil {
		started := time.Now()
		err := f.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.Health != nil {
			f.Health(err)
		}
		if time.Since(started) > backoffMax {
			backoff = backoffMin
		}
		f.Log.Debug("the Nomad event stream ended, will list again", "error", err, "after", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// once lists and follows one stream to its end; the error is never nil.
func (f *Follower) once(ctx context.Context) error {
	index, err := f.list(ctx)
	if err != nil {
		return err
	}
	timeout := cmp.Or(f.silence, heartbeatTimeout)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(timeout, cancel)
	defer silence.Stop()
	body, err := f.open(ctx, index)
	if err != nil {
		return fmt.Errorf("open Nomad's event stream: %w", err)
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	f.healthy()
	for {
		var batch struct {
			Index  uint64
			Events []Event
		}
		if err := dec.Decode(&batch); err != nil {
			return fmt.Errorf("read Nomad's event stream: %w", err)
		}
		silence.Reset(timeout)
		for _, e := range batch.Events {
			// The buffer starts at the closest index it still has, which may
			// be before the list.
			if e.Index > index || batch.Index > index {
				f.Handle(e)
			}
		}
		f.healthy()
	}
}

func (f *Follower) list(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(f.patience, listTimeout))
	defer cancel()
	return f.List(ctx)
}

func (f *Follower) healthy() {
	if f.Health != nil {
		f.Health(nil)
	}
}

func (f *Follower) open(ctx context.Context, index uint64) (io.ReadCloser, error) {
	if len(f.Topics) == 0 {
		return nil, errors.New("no topics")
	}
	params := url.Values{}
	for topic, keys := range f.Topics {
		for _, k := range keys {
			params.Add("topic", string(topic)+":"+k)
		}
	}
	params.Set("index", strconv.FormatUint(index, 10))
	q := (&api.QueryOptions{Namespace: f.Namespace}).WithContext(ctx)
	return f.Client.Raw().Response("/v1/event/stream?"+params.Encode(), q)
}
