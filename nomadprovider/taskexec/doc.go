// Package taskexec runs commands in the tasks of allocations by Nomad's exec
// API: those of kubectl exec, exec probes, lifecycle hooks, and the companion's.
package taskexec
