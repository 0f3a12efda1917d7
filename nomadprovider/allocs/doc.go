// Package allocs is the one view of what Nomad runs for a Kubernetes cluster:
// the jobs whose ID carries one of the cluster's prefixes, those of pods and
// those of their companions, their allocations, and why Nomad has no place for
// those without one.
//
// It is kept by list and event stream, one stream per Nomad namespace, and it
// only ever tells which pod's view has changed; what to do about it is the
// pods room's business. Jobs of others, another cluster's included, never
// enter it.
package allocs
