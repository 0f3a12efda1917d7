package stats

import (
	"math"
	"testing"
	"time"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// at is so many seconds after the start of the run.
func at(seconds float64) time.Time {
	return start.Add(time.Duration(seconds * float64(time.Second)))
}

func rate(seconds, cores float64) cpu { return cpu{at: at(seconds), cores: cores} }

func exact(seconds float64, counter string, used float64) cpu {
	return cpu{at: at(seconds), counter: counter, ns: uint64(used * 1e9)}
}

func TestMeter(t *testing.T) {
	const some = 0.001
	for name, tc := range map[string]struct {
		samples []cpu
		want    []float64 // seconds after each sample
	}{
		"rates are integrated by trapezoids":            {[]cpu{rate(10, 0.5), rate(20, 0.5), rate(30, 1.5), rate(40, 0)}, []float64{5, 10, 20, 27.5}},
		"an old run counts from when it is seen":        {[]cpu{rate(600, 1), rate(610, 1)}, []float64{some, 10 + some}},
		"what does nothing has used some":               {[]cpu{rate(10, 0), rate(20, 0)}, []float64{some, some}},
		"a sample that came before counts once":         {[]cpu{rate(10, 1), rate(10, 1), rate(5, 1), rate(20, 1)}, []float64{10, 10, 10, 20}},
		"a counter is taken as it is":                   {[]cpu{exact(600, "c", 100), exact(610, "c", 101), exact(620, "c", 101)}, []float64{100, 101, 101}},
		"between two readings of it, an estimate":       {[]cpu{exact(10, "c", 5), exact(20, "c", 10), rate(30, 1), exact(40, "c", 21)}, []float64{5, 10, 17.5, 21}},
		"an estimate above it is made up for":           {[]cpu{exact(10, "c", 5), exact(20, "c", 10), rate(30, 3), exact(40, "c", 12), exact(50, "c", 40)}, []float64{5, 10, 27.5, 27.5, 40}},
		"a counter that comes later is no leap":         {[]cpu{rate(600, 1), rate(610, 1), exact(620, "c", 500), exact(630, "c", 505)}, []float64{some, 10 + some, 20 + some, 25 + some}},
		"another counter, before the run's end is seen": {[]cpu{exact(10, "c", 5), exact(20, "c", 10), exact(30, "d", 1), exact(40, "d", 3)}, []float64{5, 10, 15, 17}},
		"a counter that went back is another":           {[]cpu{exact(10, "c", 5), exact(20, "c", 10), exact(30, "c", 1), exact(40, "c", 2)}, []float64{5, 10, 15, 16}},
	} {
		t.Run(name, func(t *testing.T) {
			var m meter
			for i, s := range tc.samples {
				was := m.total
				m.take(s, start)
				if got := m.total / 1e9; math.Abs(got-tc.want[i]) > 1e-6 {
					t.Errorf("after sample %d: %g s, want %g", i, got, tc.want[i])
				}
				if m.total < was {
					t.Errorf("sample %d took the counter back from %g to %g", i, was, m.total)
				}
			}
		})
	}
}

func TestMeterRate(t *testing.T) {
	var m meter
	if m.take(exact(600, "c", 7), start); m.known {
		t.Error("the rate is known of one reading of a counter")
	}
	if m.take(exact(610, "c", 12), start); !m.known || m.cores != 0.5 {
		t.Errorf("%g cores, want 0.5", m.cores)
	}
	var fresh meter
	if fresh.take(exact(10, "c", 5), start); !fresh.known || fresh.cores != 0.5 {
		t.Errorf("%g cores since the start, want 0.5", fresh.cores)
	}
}
