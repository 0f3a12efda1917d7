package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/internal/nomadstream"
)

// podTimes says when the API server first showed a pod so.
type podTimes struct {
	bound, running, ready time.Time
	// updates are the changes of the bound pod. A patch that changes nothing
	// costs the API server nearly as much and makes none.
	updates int
}

// podWatch knows of every pod by watch.
type podWatch struct {
	mu   sync.Mutex
	pods map[types.UID]podTimes
	news chan struct{} // closed and replaced at each change
}

func newPodWatch() *podWatch {
	return &podWatch{pods: map[types.UID]podTimes{}, news: make(chan struct{})}
}

func (w *podWatch) follow(ctx context.Context, inf cache.SharedIndexInformer) error {
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(x any) { w.see(x.(*corev1.Pod)) },
		UpdateFunc: func(_, x any) { w.see(x.(*corev1.Pod)) },
		DeleteFunc: func(x any) {
			if p, ok := x.(*corev1.Pod); ok {
				w.change(func() { delete(w.pods, p.UID) })
			}
		},
	})
	return err
}

func (w *podWatch) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.news)
	w.news = make(chan struct{})
}

func (w *podWatch) see(p *corev1.Pod) {
	now := time.Now()
	w.change(func() {
		t := w.pods[p.UID]
		if !t.bound.IsZero() {
			t.updates++
		}
		first(&t.bound, p.Spec.NodeName != "", now)
		first(&t.running, p.Status.Phase == corev1.PodRunning, now)
		first(&t.ready, p.Status.Phase == corev1.PodRunning && ready(p), now)
		w.pods[p.UID] = t
	})
}

func first(t *time.Time, is bool, now time.Time) {
	if is && t.IsZero() {
		*t = now
	}
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// await returns the times of the pods once all are ready.
func (w *podWatch) await(ctx context.Context, pods []*corev1.Pod) (map[types.UID]podTimes, error) {
	for {
		w.mu.Lock()
		out, news := map[types.UID]podTimes{}, w.news
		for _, p := range pods {
			if t := w.pods[p.UID]; !t.ready.IsZero() {
				out[p.UID] = t
			}
		}
		w.mu.Unlock()
		if len(out) == len(pods) {
			return out, nil
		}
		if err := next(ctx, news); err != nil {
			return nil, fmt.Errorf("%d of %d pods are ready: %w", len(out), len(pods), err)
		}
	}
}

// updates is the sum over the pods.
func (w *podWatch) updates(pods []*corev1.Pod) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range pods {
		n += w.pods[p.UID].updates
	}
	return n
}

// next waits for news, and then a little: on two cores, looking through
// hundreds of pods at each event would be the greatest load of all. The times
// are those of the events and lose nothing.
func next(ctx context.Context, news chan struct{}) error {
	select {
	case <-news:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-time.After(20 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// jobWatch knows by Nomad's event stream when jobs' allocations ran.
type jobWatch struct {
	mu   sync.Mutex
	runs map[string]time.Time
	news chan struct{}
}

func newJobWatch() *jobWatch {
	return &jobWatch{runs: map[string]time.Time{}, news: make(chan struct{})}
}

// follow returns once the stream is open.
func (w *jobWatch) follow(ctx context.Context, nomad *api.Client, namespace string) {
	open := make(chan struct{})
	var once sync.Once
	f := &nomadstream.Follower{
		Client: nomad, Namespace: namespace, Log: hclog.NewNullLogger(),
		Topics: map[api.Topic][]string{api.TopicAllocation: {"*"}},
		List: func(ctx context.Context) (uint64, error) {
			_, meta, err := nomad.Allocations().List((&api.QueryOptions{Namespace: namespace, PerPage: 1}).WithContext(ctx))
			if err != nil {
				return 0, err
			}
			return meta.LastIndex, nil
		},
		Handle: w.see,
		Health: func(err error) {
			if err == nil {
				once.Do(func() { close(open) })
			}
		},
	}
	go f.Run(ctx)
	<-open
}

func (w *jobWatch) see(e nomadstream.Event) {
	now := time.Now()
	a, err := e.Allocation()
	if err != nil || a == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.runs[a.JobID]; !ok && a.ClientStatus == api.AllocClientStatusRunning {
		w.runs[a.JobID] = now
	}
	close(w.news)
	w.news = make(chan struct{})
}

// await returns when each of the jobs first ran, once all have.
func (w *jobWatch) await(ctx context.Context, ids []string) (map[string]time.Time, error) {
	for {
		w.mu.Lock()
		out, news := map[string]time.Time{}, w.news
		for _, id := range ids {
			if t, ok := w.runs[id]; ok {
				out[id] = t
			}
		}
		w.mu.Unlock()
		if len(out) == len(ids) {
			return out, nil
		}
		if err := next(ctx, news); err != nil {
			return nil, fmt.Errorf("%d of %d jobs run: %w", len(out), len(ids), err)
		}
	}
}
