package probes

import (
	"context"
	"reflect"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// tries is how often an attempt is made that cannot be made
// (pkg/kubelet/prober/prober.go, maxProbeRetries).
const tries = 3

// Set runs the probes of one pod, each in a goroutine of its own. It is safe
// for concurrent use.
type Set struct {
	ctx    context.Context
	clock  clock.Clock
	prober Prober
	report func(Report)
	made   func(Attempt)
	group  sync.WaitGroup

	mu      sync.Mutex
	workers map[key]*worker
	ended   bool
}

type key struct {
	container string
	kind      Kind
}

// NewSet makes a Set without probes, which ends with ctx. report may be called
// by several goroutines at once, and once more for a probe that was just taken
// out of the set; so may made, which is told of every attempt.
func NewSet(ctx context.Context, prober Prober, c clock.Clock, report func(Report), made func(Attempt)) *Set {
	return &Set{ctx: ctx, clock: c, prober: prober, report: report, made: made, workers: map[key]*worker{}}
}

// Update makes these the probes that run: new ones start, others end, and one
// that is there already goes on undisturbed.
func (s *Set) Update(want []Probe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	wanted := make(map[key]bool, len(want))
	for _, p := range want {
		k := key{p.Container, p.Kind}
		wanted[k] = true
		old := s.workers[k]
		if old != nil && same(old.probe, p) {
			continue
		}
		if old != nil {
			old.stop()
			if old.probe.Run == p.Run {
				// Only how to probe has changed.
				if known := old.known(); known != nil {
					p.Known = known
				}
			}
		}
		s.start(k, p)
	}
	for k, w := range s.workers {
		if !wanted[k] {
			w.stop()
			delete(s.workers, k)
		}
	}
}

func (s *Set) start(k key, p Probe) {
	ctx, stop := context.WithCancel(s.ctx)
	w := &worker{set: s, probe: p, stop: stop, result: p.Known}
	s.workers[k] = w
	s.group.Go(func() { w.run(ctx) })
}

// Wait returns when no probe runs any more, after ctx has ended or the set was
// emptied; nothing can be added from then on.
func (s *Set) Wait() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.group.Wait()
}

// same says whether two probes are the same but for what is known of them.
func same(a, b Probe) bool {
	a.Known, b.Known = nil, nil
	at := a.StartedAt.Equal(b.StartedAt)
	a.StartedAt = b.StartedAt
	return at && reflect.DeepEqual(a, b)
}

// worker is one probe of one run.
type worker struct {
	set   *Set
	probe Probe
	stop  context.CancelFunc

	mu     sync.Mutex
	result *bool // as last reported

	// The last outcome and how often it came in a row.
	last bool
	row  int
}

func (w *worker) known() *bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.result
}

// run makes attempts until ctx ends or there is no more to find out about this
// run: a container that failed its liveness probe is about to be killed, and one
// that has started stays so.
func (w *worker) run(ctx context.Context) {
	for due := w.first(); w.await(ctx, due); due = w.next(due) {
		if done := w.attempt(ctx); done {
			return
		}
	}
}

// first is when the first attempt is due: after the initial delay, at once if
// that is over. A run that was followed by another is probed at the next of the
// times that were due anyway, so that a restart of whoever probes does not probe
// everything at once.
func (w *worker) first() time.Time {
	now, due := w.set.clock.Now(), w.probe.StartedAt
	if due.After(now) {
		due = now // by another machine's clock
	}
	due = due.Add(w.probe.InitialDelay)
	if !due.Before(now) {
		return due
	}
	if w.probe.Known == nil {
		return now
	}
	late := now.Sub(due) % w.period()
	return now.Add(w.period() - late)
}

// next is a period after the last time. An attempt that took longer is followed
// by the next one at once, as by a time.Ticker.
func (w *worker) next(due time.Time) time.Time {
	due = due.Add(w.period())
	if late := w.set.clock.Since(due); late > 0 {
		due = due.Add(late - late%w.period())
	}
	return due
}

func (w *worker) period() time.Duration { return max(w.probe.Period, time.Millisecond) }

func (w *worker) await(ctx context.Context, due time.Time) bool {
	wait := due.Sub(w.set.clock.Now())
	if wait <= 0 {
		return ctx.Err() == nil
	}
	t := w.set.clock.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C():
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// attempt probes once; done says that no more is to be found out.
func (w *worker) attempt(ctx context.Context) (done bool) {
	p := w.probe
	r := Report{Container: p.Container, Kind: p.Kind, Run: p.Run, At: w.set.clock.Now()}
	var err error
	for range tries {
		if r.Outcome, r.Output, err = w.set.prober.Probe(ctx, p); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		r.Outcome, r.Output = Unknown, err.Error()
	}
	w.set.made(Attempt{Container: p.Container, Kind: p.Kind, Outcome: r.Outcome, Took: w.set.clock.Since(r.At)})
	if len(r.Output) > MaxOutput {
		r.Output = r.Output[:MaxOutput]
	}
	if err == nil {
		r.Result = w.count(r.Outcome != Failure)
	}
	if r.Result != nil || r.Outcome != Success {
		w.set.report(r)
	}
	return r.Result != nil && (p.Kind == Startup || p.Kind == Liveness && !*r.Result)
}

// count applies the thresholds; it returns the result if it has changed.
func (w *worker) count(ok bool) *bool {
	if w.row == 0 || ok != w.last {
		w.last, w.row = ok, 0
	}
	w.row++
	threshold := w.probe.FailureThreshold
	if ok {
		threshold = w.probe.SuccessThreshold
	}
	if w.row < threshold {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.result
	if was == nil && w.probe.Kind != Startup {
		was = new(w.probe.Kind == Liveness)
	}
	if was != nil && *was == ok {
		return nil
	}
	w.result = &ok
	return w.result
}
