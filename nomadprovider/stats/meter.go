package stats

import "time"

const (
	// young is how old a run may be when it is first seen for its counter to be
	// extended back to its start.
	young = time.Minute
	// someCPU is where an integrated counter begins, in nanoseconds. What runs has
	// used some, and metrics-server takes zero for not known
	// (pkg/scraper/client/resource/decode.go, checkContainerMetrics).
	someCPU = float64(time.Millisecond)
)

// cpu is a sample: an exact counter, or how much is used at that time.
type cpu struct {
	at time.Time
	// counter names the counter, which stood at ns; empty for a sample of the rate.
	counter string
	ns      uint64
	cores   float64
}

// meter makes a counter that never goes back of samples of either kind.
type meter struct {
	total float64   // nanoseconds
	at    time.Time // of the last sample; zero: none yet
	// cores is the rate at that time, if it is known.
	cores float64
	known bool
	// counter is that of the last exact sample, which stood at reading when it was
	// first read, and total at base.
	counter string
	reading uint64
	base    float64
}

// take counts a sample of a run that began at start, zero for when is not known.
// One that is not newer than the last is none.
func (m *meter) take(c cpu, start time.Time) {
	first := m.at.IsZero()
	if !first && !c.at.After(m.at) {
		return
	}
	was, passed := m.total, float64(c.at.Sub(m.at))
	age := c.at.Sub(start)
	isYoung := !start.IsZero() && age > 0 && age < young
	switch {
	case c.counter == "":
		m.estimate(c.cores, first, isYoung, float64(age), passed)
		m.cores, m.known = c.cores, true
		m.at = c.at
		return
	case c.counter == m.counter && c.ns >= m.reading:
		// An estimate that was too high is made up for by standing still.
		m.total = max(m.total, m.base+float64(c.ns-m.reading))
	case first:
		m.total = max(someCPU, float64(c.ns))
		m.counter, m.reading, m.base = c.counter, c.ns, m.total
	default:
		// A counter that was not read before: what it has counted until now has been
		// estimated, all but what came since.
		m.total += m.cores * passed
		m.counter, m.reading, m.base = c.counter, c.ns, m.total
	}
	switch {
	case !first:
		m.cores, m.known = (m.total-was)/passed, true
	case isYoung:
		m.cores, m.known = m.total/float64(age), true
	}
	m.at = c.at
}

// estimate counts a sample of the rate: over the time since the last, or since the
// start.
func (m *meter) estimate(cores float64, first, isYoung bool, age, passed float64) {
	switch {
	case first && isYoung:
		m.total = max(someCPU, cores*age)
	case first:
		m.total = someCPU
	case m.known:
		m.total += (m.cores + cores) / 2 * passed
	default:
		m.total += cores * passed
	}
}
