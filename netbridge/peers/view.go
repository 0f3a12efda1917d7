package peers

import (
	"maps"
	"slices"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// DefaultHold is how long many missing peers are waited for.
const DefaultHold = 5 * time.Minute

// View is the set of peers; the zero value has none and follows nobody until
// Settings is set. It is not safe for concurrent use.
type View struct {
	Settings fabric.Settings
	Self     fabric.ID
	// Own is this node's record: nobody else's may collide with it.
	Own fabric.Node
	// Hold is how long many missing peers are kept.
	Hold time.Duration

	followed map[fabric.ID]fabric.Node
	missing  map[fabric.ID]time.Time
	// doubt is raised by a list that was not complete: the first complete one after
	// it may be of a store that lost its records, to which nodes come back one by
	// one.
	doubt bool
}

// Result is what a list came to.
type Result struct {
	Peers map[fabric.ID]fabric.Node
	// Prune says that what is not among the peers is to go.
	Prune bool
	// Refused says why a record is not followed.
	Refused map[fabric.ID]error
	// Held are peers that are missing and kept all the same.
	Held []fabric.ID
	// Again is when the same list is to be looked at again; zero for never.
	Again time.Time
}

// Start begins with peers known from before.
func (v *View) Start(known map[fabric.ID]fabric.Node) {
	v.followed = maps.Clone(known)
	delete(v.followed, v.Self)
}

// Apply takes a list that came in, or the last one again when Result.Again is due.
func (v *View) Apply(now time.Time, l registry.List) Result {
	records := maps.Clone(l.Nodes)
	if records == nil {
		records = map[fabric.ID]fabric.Node{}
	}
	var gone []fabric.ID
	for id := range v.followed {
		if _, ok := records[id]; !ok {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	r := Result{Prune: l.Incomplete == nil}
	keep := gone
	switch {
	case r.Prune:
		keep, r.Again = v.guard(now, gone)
		v.doubt = false
	case l.Nodes != nil:
		v.doubt = true
	}
	for _, id := range keep {
		records[id] = v.followed[id]
	}
	known := map[fabric.ID]fabric.Node{}
	maps.Copy(known, v.followed)
	if v.Own.Host.IsValid() {
		records[v.Self], known[v.Self] = v.Own, v.Own
	}
	r.Peers, r.Refused = v.Settings.Accept(records, known)
	delete(r.Peers, v.Self)
	for _, id := range keep {
		if _, ok := r.Peers[id]; ok {
			r.Held = append(r.Held, id)
		}
	}
	v.followed = r.Peers
	r.Peers = maps.Clone(r.Peers)
	return r
}

// guard returns which of the missing are kept, and until when. More than half of
// the peers gone at once is what an emptied or restored store looks like, not
// what happens to machines.
func (v *View) guard(now time.Time, gone []fabric.ID) ([]fabric.ID, time.Time) {
	since := map[fabric.ID]time.Time{}
	mass := v.doubt || len(gone) > 1 && 2*len(gone) > len(v.followed)
	var keep []fabric.ID
	var again time.Time
	for _, id := range gone {
		first, waits := v.missing[id]
		if !waits && !mass {
			continue
		}
		if !waits {
			first = now
		}
		if due := first.Add(v.Hold); due.After(now) {
			keep = append(keep, id)
			since[id] = first
			if again.IsZero() || due.Before(again) {
				again = due
			}
		}
	}
	v.missing = since
	return keep, again
}
