package node

import (
	"fmt"
	"time"
)

// Reasons of the Ready condition and of the events that go with it.
const (
	ReasonReady            = "KubeletReady"
	ReasonNomadReachable   = "NomadReachable"
	ReasonNomadUnreachable = "NomadUnreachable"
	ReasonNoReadyClients   = "NoReadyClients"
	ReasonUnknownPool      = "UnknownNodePool"
)

// readiness is the hysteresis of the Ready condition: a fault turns it False
// only after it has lasted for the time given, its end turns it True at once.
// It is not safe for concurrent use.
type readiness struct {
	after time.Duration
	// ready is the verdict so far; a Node that was Ready before this process
	// started begins so.
	ready bool
	// faultSince is when the present fault began, zero without one.
	faultSince time.Time
}

// fault is what keeps a node from being ready; the zero value is none.
type fault struct {
	reason, message string
	// since is when it began; zero means now.
	since time.Time
}

// verdict is the Ready condition to publish.
type verdict struct {
	ready           bool
	reason, message string
	// recheck is after how long the verdict changes unless the fault ends;
	// zero means never.
	recheck time.Duration
}

// judge takes the fault of the moment.
func (r *readiness) judge(now time.Time, f fault) verdict {
	if f.reason == "" {
		r.faultSince, r.ready = time.Time{}, true
		return verdict{ready: true, reason: ReasonReady, message: "Nomad is reachable and has ready clients"}
	}
	if r.faultSince.IsZero() {
		r.faultSince = now
		if !f.since.IsZero() && f.since.Before(now) {
			r.faultSince = f.since
		}
	}
	lasted := now.Sub(r.faultSince)
	if r.ready && lasted < r.after {
		return verdict{
			ready: true, reason: ReasonReady,
			message: fmt.Sprintf("%s; the node turns NotReady if that lasts for %s", f.message, r.after),
			recheck: r.after - lasted,
		}
	}
	r.ready = false
	return verdict{reason: f.reason, message: f.message}
}
