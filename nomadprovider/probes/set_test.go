package probes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"
)

// script is a Prober that answers as told, by container and kind, the last
// answer for ever, and remembers when it was asked.
type script struct {
	mu      sync.Mutex
	answers map[string][]answer
	asked   map[string][]time.Time
	takes   time.Duration
}

type answer struct {
	outcome Outcome
	err     error
}

func (s *script) Probe(ctx context.Context, p Probe) (Outcome, string, error) {
	name := p.Container + "/" + string(p.Kind)
	s.mu.Lock()
	s.asked[name] = append(s.asked[name], time.Now())
	a := answer{outcome: Success}
	if list := s.answers[name]; len(list) > 0 {
		a = list[0]
		if len(list) > 1 {
			s.answers[name] = list[1:]
		}
	}
	takes := s.takes
	s.mu.Unlock()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return Unknown, "", ctx.Err()
		}
	}
	return a.outcome, "said " + string(a.outcome), a.err
}

// bench runs a Set in a bubble of its own time.
type bench struct {
	*Set
	*script
	start   time.Time
	mu      sync.Mutex
	reports []string
	tried   []string
	end     context.CancelFunc
}

func newBench(answers map[string][]answer) *bench {
	b := &bench{script: &script{answers: answers, asked: map[string][]time.Time{}}, start: time.Now()}
	ctx, end := context.WithCancel(context.Background())
	b.end = end
	b.Set = NewSet(ctx, b.script, clock.RealClock{}, b.took, b.made)
	return b
}

func (b *bench) made(a Attempt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tried = append(b.tried, fmt.Sprintf("%s/%s %s %v", a.Container, a.Kind, a.Outcome, a.Took))
}

func (b *bench) took(r Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	result := "-"
	if r.Result != nil {
		result = fmt.Sprint(*r.Result)
	}
	b.reports = append(b.reports, fmt.Sprintf("%v %s/%s %s %s", r.At.Sub(b.start), r.Container, r.Kind, r.Outcome, result))
}

// until lets time pass and returns what was reported.
func (b *bench) until(d time.Duration) string {
	time.Sleep(time.Until(b.start.Add(d)))
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	out := strings.Join(b.reports, "\n")
	b.reports = nil
	return out
}

func (b *bench) at(name string) string {
	b.script.mu.Lock()
	defer b.script.mu.Unlock()
	var out []string
	for _, t := range b.asked[name] {
		out = append(out, t.Sub(b.start).String())
	}
	return strings.Join(out, " ")
}

func (b *bench) close() { b.end(); b.Wait() }

func probe(kind Kind, change func(*Probe)) Probe {
	p := Probe{Container: "c", Kind: kind, Run: "1", StartedAt: time.Now(), Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	if change != nil {
		change(&p)
	}
	return p
}

var good, bad = answer{outcome: Success}, answer{outcome: Failure}

func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	if w := strings.Join(lines, "\n"); got != w {
		t.Errorf("got\n%s\nwant\n%s", got, w)
	}
}

func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Readiness": {bad, good, good, bad, bad, good, bad, bad, bad, good}})
		defer b.close()
		b.Update([]Probe{probe(Readiness, func(p *Probe) { p.SuccessThreshold = 2 })})
		want(t, b.until(100*time.Second),
			"0s c/Readiness failure -",
			"20s c/Readiness success true",
			"30s c/Readiness failure -",
			"40s c/Readiness failure -",
			"1m0s c/Readiness failure -",
			"1m10s c/Readiness failure -",
			"1m20s c/Readiness failure false",
			"1m40s c/Readiness success true")
	})
}

func TestLivenessIsOnHoldUntilTheNextRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Liveness": {good, bad, bad, good, bad}})
		defer b.close()
		p := probe(Liveness, func(p *Probe) { p.FailureThreshold = 2 })
		b.Update([]Probe{p})
		want(t, b.until(60*time.Second), "10s c/Liveness failure -", "20s c/Liveness failure false")
		b.Update([]Probe{p})
		want(t, b.until(90*time.Second), "")
		want(t, b.at("c/Liveness"), "0s 10s 20s")
		p.Run, p.StartedAt = "2", b.start.Add(90*time.Second)
		b.Update([]Probe{p})
		want(t, b.until(130*time.Second), "1m40s c/Liveness failure -", "1m50s c/Liveness failure false")
	})
}

func TestStartup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Startup": {bad, bad, good}, "d/Startup": {bad}})
		defer b.close()
		b.Update([]Probe{
			probe(Startup, func(p *Probe) { p.Period = time.Second }),
			probe(Startup, func(p *Probe) { p.Container = "d"; p.InitialDelay = 5 * time.Second }),
		})
		want(t, b.until(100*time.Second),
			"0s c/Startup failure -", "1s c/Startup failure -", "2s c/Startup success true",
			"5s d/Startup failure -", "15s d/Startup failure -", "25s d/Startup failure false")
		want(t, b.at("c/Startup"), "0s 1s 2s")
		want(t, b.at("d/Startup"), "5s 15s 25s")
	})
}

// What could not be asked counts for nothing, after three tries.
func TestUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		no := answer{err: errors.New("no way")}
		b := newBench(map[string][]answer{"c/Liveness": {bad, bad, no, no, no, bad, good}, "d/Liveness": {no, no, good}})
		defer b.close()
		b.Update([]Probe{probe(Liveness, nil), probe(Liveness, func(p *Probe) { p.Container, p.InitialDelay = "d", time.Second })})
		want(t, b.until(39*time.Second),
			"0s c/Liveness failure -", "10s c/Liveness failure -", "20s c/Liveness unknown -", "30s c/Liveness failure false")
		want(t, b.at("d/Liveness"), "1s 1s 1s 11s 21s 31s")
	})
}

func TestWarningCountsAsSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Readiness": {{outcome: Warning}}})
		defer b.close()
		b.Update([]Probe{probe(Readiness, nil)})
		want(t, b.until(11*time.Second), "0s c/Readiness warning true", "10s c/Readiness warning -")
	})
}

// The first attempt of a run that nobody has probed is made as soon as its
// delay is over; of one that was followed before, when it would have been due.
func TestFirst(t *testing.T) {
	for name, c := range map[string]struct {
		started, delay time.Duration
		known          bool
		want           string
	}{
		"at once":                 {want: "0s 10s 20s"},
		"delayed":                 {delay: 3 * time.Second, want: "3s 13s 23s"},
		"seen late":               {started: -25 * time.Second, want: "0s 10s 20s"},
		"seen during the delay":   {started: -2 * time.Second, delay: 3 * time.Second, want: "1s 11s 21s"},
		"by a clock that is off":  {started: time.Minute, delay: 3 * time.Second, want: "3s 13s 23s"},
		"known":                   {started: -23 * time.Second, known: true, want: "7s 17s 27s"},
		"known, during its delay": {started: -2 * time.Second, delay: 5 * time.Second, known: true, want: "3s 13s 23s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(nil)
				defer b.close()
				b.Update([]Probe{probe(Liveness, func(p *Probe) {
					p.StartedAt, p.InitialDelay = p.StartedAt.Add(c.started), c.delay
					if c.known {
						p.Known = new(true)
					}
				})})
				b.until(29 * time.Second)
				want(t, b.at("c/Liveness"), c.want)
			})
		})
	}
}

// A known result is not reported again, and a loss of it is.
func TestKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Readiness": {good, bad}})
		defer b.close()
		b.Update([]Probe{probe(Readiness, func(p *Probe) { p.Known, p.FailureThreshold = new(true), 1 })})
		want(t, b.until(15*time.Second), "10s c/Readiness failure false")
	})
}

// An attempt that takes longer than the period is followed by the next at once,
// and the times stay where they were.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil)
		defer b.close()
		b.takes = 25 * time.Second
		b.Update([]Probe{probe(Liveness, nil)})
		b.until(76 * time.Second)
		want(t, b.at("c/Liveness"), "0s 25s 50s 1m15s")
		// Each attempt is counted at its end, those that tell nothing new included.
		want(t, strings.Join(b.tried, "\n"), "c/Liveness success 25s", "c/Liveness success 25s", "c/Liveness success 25s")
	})
}

// Neither a set that names the probe again, with what is known by now, nor other
// probes disturb one; a change of how to probe keeps the result.
func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(nil)
		defer b.close()
		p := probe(Readiness, nil)
		b.Update([]Probe{p})
		want(t, b.until(5*time.Second), "0s c/Readiness success true")
		p.Known = new(true)
		b.Update([]Probe{p, probe(Liveness, nil)})
		b.until(12 * time.Second)
		b.Update([]Probe{p})
		b.until(22 * time.Second)
		want(t, b.at("c/Readiness"), "0s 10s 20s")
		want(t, b.at("c/Liveness"), "5s")
		p.Known, p.Action.TCP = nil, &TCP{Host: "h", Port: 1}
		b.Update([]Probe{p})
		want(t, b.until(35*time.Second), "")
		want(t, b.at("c/Readiness"), "0s 10s 20s 30s")
		b.Update(nil)
		b.until(60 * time.Second)
		want(t, b.at("c/Readiness"), "0s 10s 20s 30s")
	})
}

// What is under way when a probe ends is given up, and not reported.
func TestStopsAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(map[string][]answer{"c/Liveness": {bad}})
		defer b.close()
		b.takes = time.Hour
		b.Update([]Probe{probe(Liveness, nil)})
		b.until(time.Second)
		b.Update(nil)
		b.Wait()
		b.Update([]Probe{probe(Readiness, nil)})
		want(t, b.until(2*time.Second), "")
	})
}

func TestOutputIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got Report
		long := prober(func() (Outcome, string, error) { return Failure, strings.Repeat("x", 2*MaxOutput), nil })
		ctx, end := context.WithCancel(context.Background())
		s := NewSet(ctx, long, clock.RealClock{}, func(r Report) { got = r }, func(Attempt) {})
		s.Update([]Probe{probe(Liveness, nil)})
		synctest.Wait()
		end()
		s.Wait()
		if len(got.Output) != MaxOutput {
			t.Errorf("%d bytes", len(got.Output))
		}
	})
}

type prober func() (Outcome, string, error)

func (f prober) Probe(context.Context, Probe) (Outcome, string, error) { return f() }
