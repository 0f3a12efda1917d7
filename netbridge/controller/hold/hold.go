package hold

import (
	"slices"
	"time"
)

// Default is how long what is missing in numbers is waited for.
const Default = 5 * time.Minute

// Guard watches over one kind of things, each called by its name. It is not safe
// for concurrent use.
type Guard struct {
	// Hold is how long what is held must stay missing.
	Hold time.Duration

	since map[string]time.Time
	doubt time.Time // until then
}

// Doubt is told that one of those who say what is there did not, or not all of it.
// What turns out to be missing soon after that may be a store that lost its
// records, to which they come back one by one.
func (g *Guard) Doubt(at time.Time) {
	if until := at.Add(g.Hold); until.After(g.doubt) {
		g.doubt = until
	}
}

// Release returns which of the missing may go, and which are held until when at
// the earliest. of is how many there are with the missing ones. What is no longer
// missing begins anew when it is the next time.
func (g *Guard) Release(now time.Time, missing []string, of int) (free, held []string, again time.Time) {
	// More than half at once is what an emptied or restored store looks like.
	mass := now.Before(g.doubt) || len(missing) > 1 && 2*len(missing) > of
	since := map[string]time.Time{}
	for _, name := range slices.Sorted(slices.Values(missing)) {
		first, waits := g.since[name]
		if !waits && !mass {
			free = append(free, name)
			continue
		}
		if !waits {
			first = now
		}
		due := first.Add(g.Hold)
		if !due.After(now) {
			free = append(free, name)
			// Kept, for the case that it cannot be taken away now.
			since[name] = first
			continue
		}
		held, since[name] = append(held, name), first
		if again.IsZero() || due.Before(again) {
			again = due
		}
	}
	g.since = since
	return free, held, again
}
