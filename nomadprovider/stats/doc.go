// Package stats tells what the pods of a virtual node use, and what its Nomad
// clients do, for the kubelet's /stats/summary, /metrics/resource and
// /metrics/cadvisor.
//
// # Contract
//
// Nothing is gathered while nobody asks. Who asks gets what is at most [Interval]
// old; all who ask within it share one gathering, which is over within a few
// seconds and makes at most [AtOnce] calls at a time, of all virtual nodes together.
//
// # Sources
//
// A client that has the docker proxy is asked by one call for all its containers
// (dockerproxy.CallUsage): the kernel's own counters, the kubelet's working set,
// and the traffic of each pod's network. That is exact.
//
// Elsewhere, and when that call fails, Nomad is asked for each allocation, if its
// client looks at all (telemetry { publish_allocation_metrics }). It has no counter
// of CPU time but only how much was used of late: in the last second for docker,
// since the client's last look for exec and VMs. The counter is then the integral
// over the samples, by trapezoids. It is as right as the samples are typical of the
// time between two scrapes. It counts from the start of a run that is first seen within
// a minute of it, assuming that what is used then was used before, and otherwise
// from when it is first seen.
//
// Nomad does not tell a container's working set either, which is what it uses but
// for files that have not been read of late. What stands for it is the usage without
// any files, those in memory (tmpfs) included, and so is lower. Of VMs it is what
// the guest uses, by its own word (MemTotal less MemAvailable, by the balloon
// device), or else the resident memory of qemu.
//
// The node is the sum of its pool's machines, whatever else runs there: CPU by
// integration, of the time in user and system mode; memory that is not available.
//
// # Counters
//
// A counter is of one run: allocation, task and start. It never goes back, be its
// source one or the other or both in turn, and starts anew with the next run. The
// pod's goes on over its containers' runs, as that of a pod's cgroup does, and the
// node's while clients come and go. This process' restart, or another's lead, starts
// the integrated ones over; what counts rates takes that for a restart.
//
// What cannot be read keeps its last values, with their time, for [Keep].
package stats
