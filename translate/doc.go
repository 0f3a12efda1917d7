// Package translate turns a Kubernetes Pod into a Nomad job, and what Nomad
// says of that job's allocation back into a Pod status.
//
// It is pure: everything it needs is handed to it, it opens no connection,
// reads no clock, logs nothing, and imports nothing else of this project.
// Values of ConfigMaps and Secrets never enter it either; it is told which
// keys exist and answers with references ([Item]) that the projection room
// fills into a Nomad Variable, so a secret cannot end up in a job
// specification by mistake.
//
// # The job
//
// One pod is one job of one group ([GroupName]) and count 1. Its containers
// are tasks of the same name. The job is registered once and never updated:
// Nomad replaces the allocation for nearly every change, so what may change
// during a pod's life lives in Variables.
//
// An ephemeral container, which comes while the pod runs, is a job of its own
// ([EphemeralJob]).
//
// # The Variables of a job J
//
//	nomad/jobs/J            projected data: one item per projected key, base64
//	nomad/jobs/J/pod        the ghost: it never exists, a template that reads it waits
//	nomad/jobs/J/pod/TASK   the gate of TASK, written and deleted by the pods room
//
// # Verdicts
//
// Every field of PodSpec has a [Verdict]; a test walks the API types and
// fails when one is missing.
package translate
