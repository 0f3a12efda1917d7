package stats

import (
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
)

// sample is what a container uses at one time.
type sample struct {
	cpu
	memory memory
	// throttling is nil where the driver knows of no quota.
	throttling *throttling
	// interfaces are those of the pod's network, where they are known.
	interfaces []dockerproxy.Interface
}

// memory is in bytes; nil is not known.
type memory struct {
	workingSet                 uint64
	usage, rss, cache, swap    *uint64
	pageFaults, majorPageFault *uint64
}

// throttling is by the CPU quota; periods are zero where they are not known.
type throttling struct {
	periods, throttled uint64
	time               time.Duration
}

// fromProxy is exact.
func fromProxy(u dockerproxy.Usage) sample {
	s := sample{
		cpu:        cpu{at: u.At, counter: u.ID, ns: u.CPU},
		memory:     memory{workingSet: u.WorkingSet, usage: &u.Memory, rss: &u.RSS, cache: &u.Cache, swap: u.Swap, pageFaults: &u.Faults, majorPageFault: &u.MajorFaults},
		interfaces: u.Interfaces,
	}
	if u.Periods > 0 {
		s.throttling = &throttling{u.Periods, u.ThrottledPeriods, time.Duration(u.Throttled)}
	}
	return s
}

// fromNomad is of a task that Nomad has a sample of; ok is false where it has none.
func fromNomad(u *api.TaskResourceUsage, driver string) (s sample, ok bool) {
	if u == nil || u.Timestamp == 0 || u.ResourceUsage == nil || u.ResourceUsage.CpuStats == nil || u.ResourceUsage.MemoryStats == nil {
		return s, false
	}
	c, m := u.ResourceUsage.CpuStats, u.ResourceUsage.MemoryStats
	s.cpu = cpu{at: time.Unix(0, u.Timestamp), cores: c.Percent / 100}
	s.memory = memoryOf(m, driver)
	if slices.Contains(c.Measured, "Throttled Periods") && c.ThrottledPeriods > 0 {
		s.throttling = &throttling{throttled: c.ThrottledPeriods, time: time.Duration(c.ThrottledTime)}
	}
	return s, true
}

// memoryOf stands for the kubelet's working set: see the package's comment. The
// executor's statistics of processes, which qemu's are, have no usage.
func memoryOf(m *api.MemoryStats, driver string) memory {
	out := memory{rss: &m.RSS}
	if out.workingSet = m.RSS; slices.Contains(m.Measured, "Usage") {
		out.usage, out.cache = &m.Usage, &m.Cache
		out.workingSet = max(m.RSS, m.Usage-min(m.Usage, m.Cache))
	}
	// The docker driver says that it measures swap, and has none to tell on cgroup
	// v2 (drivers/docker/util/stats_posix.go).
	if m.Swap > 0 || driver != "docker" && slices.Contains(m.Measured, "Swap") {
		out.swap = &m.Swap
	}
	return out
}

// hostSample is what a Nomad client's machine does at one time.
type hostSample struct {
	cpu
	cpus                     int
	memory, memoryAvailable  uint64
	disk, diskUsed, diskFree uint64 // of the file system of allocations
}

// hostStats is the answer of /v1/client/stats, of which the API package leaves the
// time out.
type hostStats struct {
	api.HostStats
	Timestamp int64
}

// fromHost takes user and system time for use: what is left to idle has waiting
// for disks in it.
func fromHost(h *hostStats) (s hostSample, ok bool) {
	if h.Timestamp == 0 || h.Memory == nil {
		return s, false
	}
	s.at, s.cpus = time.Unix(0, h.Timestamp), len(h.CPU)
	for _, c := range h.CPU {
		s.cores += (c.User + c.System) / 100
	}
	s.memory, s.memoryAvailable = h.Memory.Total, h.Memory.Available
	if d := h.AllocDirStats; d != nil {
		s.disk, s.diskUsed, s.diskFree = d.Size, d.Used, d.Available
	}
	return s, true
}
