package probes

import (
	"context"
	"time"
)

// Kind is what a probe is for; its text is the kubelet's in events.
type Kind string

// The kinds of probes.
const (
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
	Startup   Kind = "Startup"
)

// Probe is one probe of one run of a container. It travels to the companion as
// JSON and has only what the companion needs: with corev1.Probe the program
// would be half as large again.
type Probe struct {
	Container string `json:"container"`
	Kind      Kind   `json:"kind"`
	// Run names the container's run and changes with each start.
	Run       string    `json:"run"`
	StartedAt time.Time `json:"startedAt"`

	InitialDelay     time.Duration `json:"initialDelay,omitempty"`
	Period           time.Duration `json:"period"`
	Timeout          time.Duration `json:"timeout"`
	SuccessThreshold int           `json:"successThreshold,omitempty"`
	FailureThreshold int           `json:"failureThreshold,omitempty"`

	// Known is the result that somebody else has found for this run, who is
	// followed: it holds until this one finds another, and the first probe is
	// made when the next one is due. Nil for a run that nobody has probed.
	Known *bool `json:"known,omitempty"`

	Action Action `json:"action"`
}

// Action is what a probe does; exactly one of its fields is set.
type Action struct {
	Exec []string `json:"exec,omitempty"`
	HTTP *HTTP    `json:"http,omitempty"`
	TCP  *TCP     `json:"tcp,omitempty"`
	GRPC *GRPC    `json:"grpc,omitempty"`
	// Broken says why there is nothing to do, such as a port of unknown name;
	// the probe never succeeds.
	Broken string `json:"broken,omitempty"`
}

// HTTP is a GET request.
type HTTP struct {
	Scheme  string   `json:"scheme,omitempty"` // http or https, in any case; empty is http
	Host    string   `json:"host"`
	Port    int      `json:"port"`
	Path    string   `json:"path,omitempty"`
	Headers []Header `json:"headers,omitempty"`
}

// Header is a header of a request; a name may come more than once.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCP is an attempt to connect.
type TCP struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// GRPC is a call of grpc.health.v1.Health/Check.
type GRPC struct {
	Host    string `json:"host"`
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// Outcome is what came of one attempt.
type Outcome string

// The outcomes.
const (
	Success Outcome = "success"
	// Warning is a success with something to be told.
	Warning Outcome = "warning"
	Failure Outcome = "failure"
	// Unknown is an attempt that could not be made; it counts for nothing.
	Unknown Outcome = "unknown"
)

// Prober makes one attempt. It returns within the probe's timeout, or soon
// after, and when ctx ends. An error is of an attempt that could not be made.
type Prober interface {
	Probe(ctx context.Context, p Probe) (outcome Outcome, output string, err error)
}

// Report tells of an attempt that changed the probe's result, or that went
// otherwise than well. Attempts that confirm a result are not reported.
type Report struct {
	Container string    `json:"container"`
	Kind      Kind      `json:"kind"`
	Run       string    `json:"run"`
	At        time.Time `json:"at"` // when the attempt began
	Outcome   Outcome   `json:"outcome"`
	Output    string    `json:"output,omitempty"` // at most MaxOutput bytes
	// Result is the probe's result with its thresholds, when this attempt
	// changed it. Before the first a container counts as alive, not as ready and
	// not as started.
	Result *bool `json:"result,omitempty"`
}

// Attempt is one that was made, for those who count them.
type Attempt struct {
	Container string        `json:"container"`
	Kind      Kind          `json:"kind"`
	Outcome   Outcome       `json:"outcome"`
	Took      time.Duration `json:"took"`
}

// MaxOutput bounds what is kept of an attempt's output, in bytes
// (pkg/probe/exec and pkg/probe/http, maxReadLength).
const MaxOutput = 10 << 10
