// Package taskexec runs commands in the tasks of allocations by Nomad's exec
// API: those of kubectl exec, exec probes, lifecycle hooks, and the companion's.
//
// It works around two of Nomad's faults, each told where that is done: the docker
// driver ends calls too early (docker.go), and Nomad's agent does not end those
// whose caller has gone (hangup.go).
package taskexec
