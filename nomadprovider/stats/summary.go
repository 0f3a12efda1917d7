package stats

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
)

// Summary is the answer of /stats/summary; with onlyCPUAndMemory the rest is left
// out. The error is of a node of which nothing at all is known.
func (g *Gatherer) Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsapi.Summary, error) {
	return g.summary(g.get(ctx), onlyCPUAndMemory)
}

func (g *Gatherer) summary(s *snapshot, onlyCPUAndMemory bool) (*statsapi.Summary, error) {
	if s.err != nil && len(s.pods) == 0 && len(s.node.machines) == 0 {
		return nil, fmt.Errorf("statistics of node %q: %w", g.o.Node, s.err)
	}
	out := &statsapi.Summary{Node: g.nodeStats(s), Pods: make([]statsapi.PodStats, 0, len(s.pods))}
	for i := range s.pods {
		out.Pods = append(out.Pods, podStats(&s.pods[i], !onlyCPUAndMemory))
	}
	if onlyCPUAndMemory {
		out.Node.Fs = nil
	}
	return out, nil
}

func (g *Gatherer) nodeStats(s *snapshot) statsapi.NodeStats {
	n := statsapi.NodeStats{NodeName: g.o.Node, StartTime: metav1.NewTime(g.started)}
	if len(s.node.machines) == 0 {
		return n
	}
	n.CPU = s.node.used.stats()
	var total, available uint64
	fs := statsapi.FsStats{AvailableBytes: new(uint64), CapacityBytes: new(uint64), UsedBytes: new(uint64)}
	for _, m := range s.node.machines {
		total += m.memory
		available += m.memoryAvailable
		*fs.AvailableBytes += m.diskFree
		*fs.CapacityBytes += m.disk
		*fs.UsedBytes += m.diskUsed
	}
	used := total - min(total, available)
	fs.Time = n.CPU.Time
	n.Memory = &statsapi.MemoryStats{Time: n.CPU.Time, AvailableBytes: &available, UsageBytes: &used, WorkingSetBytes: &used}
	n.Fs = &fs
	return n
}

func podStats(p *podUsage, all bool) statsapi.PodStats {
	pod := p.Object
	out := statsapi.PodStats{
		PodRef:     statsapi.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)},
		CPU:        p.used.stats(),
		Memory:     &statsapi.MemoryStats{Time: metav1.NewTime(p.used.at), WorkingSetBytes: new(uint64)},
		Containers: make([]statsapi.ContainerStats, 0, len(p.containers)),
	}
	if pod.Status.StartTime != nil {
		out.StartTime = *pod.Status.StartTime
	}
	var usage, rss, swap sumOf
	for i := range p.containers {
		c := &p.containers[i]
		out.Containers = append(out.Containers, containerStats(c, limitOf(pod, c.Name)))
		*out.Memory.WorkingSetBytes += c.memory.workingSet
		usage.add(c.memory.usage)
		rss.add(c.memory.rss)
		swap.add(c.memory.swap)
		if all && c.interfaces != nil {
			out.Network = networkStats(c.at, c.interfaces)
		}
	}
	out.Memory.UsageBytes, out.Memory.RSSBytes = usage.get(), rss.get()
	if s := swap.get(); s != nil {
		out.Swap = &statsapi.SwapStats{Time: out.Memory.Time, SwapUsageBytes: s}
	}
	return out
}

func containerStats(c *containerUsage, limit uint64) statsapi.ContainerStats {
	m := c.memory
	out := statsapi.ContainerStats{
		Name: c.Name, StartTime: metav1.NewTime(c.StartedAt), CPU: c.used.stats(),
		Memory: &statsapi.MemoryStats{
			Time: metav1.NewTime(c.at), WorkingSetBytes: &m.workingSet, UsageBytes: m.usage, RSSBytes: m.rss,
			PageFaults: m.pageFaults, MajorPageFaults: m.majorPageFault,
		},
	}
	if limit > 0 {
		out.Memory.AvailableBytes = new(limit - min(limit, m.workingSet))
	}
	if m.swap != nil {
		out.Swap = &statsapi.SwapStats{Time: out.Memory.Time, SwapUsageBytes: m.swap}
	}
	return out
}

func (u used) stats() *statsapi.CPUStats {
	s := &statsapi.CPUStats{Time: metav1.NewTime(u.at), UsageCoreNanoSeconds: &u.nanoseconds}
	if u.cores != nil {
		s.UsageNanoCores = new(uint64(*u.cores * float64(time.Second)))
	}
	return s
}

// defaultInterface is the one whose traffic is told as the pod's (cAdvisor and
// pkg/kubelet/stats, network.DefaultInterfaceName).
const defaultInterface = "eth0"

func networkStats(at time.Time, list []dockerproxy.Interface) *statsapi.NetworkStats {
	out := &statsapi.NetworkStats{Time: metav1.NewTime(at)}
	for _, i := range list {
		s := statsapi.InterfaceStats{
			Name: i.Name, RxBytes: new(i.Rx.Bytes), RxErrors: new(i.Rx.Errors), TxBytes: new(i.Tx.Bytes), TxErrors: new(i.Tx.Errors),
		}
		out.Interfaces = append(out.Interfaces, s)
		if i.Name == defaultInterface {
			out.InterfaceStats = s
		}
	}
	return out
}

// limitOf is the container's memory limit in bytes, zero for none.
func limitOf(pod *corev1.Pod, container string) uint64 {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if q, ok := list[i].Resources.Limits[corev1.ResourceMemory]; ok && list[i].Name == container && q.Value() > 0 {
				return uint64(q.Value())
			}
		}
	}
	return 0
}

// sumOf adds up what must be known of all.
type sumOf struct {
	value   uint64
	unknown bool
}

func (s *sumOf) add(v *uint64) {
	if v == nil {
		s.unknown = true
		return
	}
	s.value += *v
}

func (s *sumOf) get() *uint64 {
	if s.unknown {
		return nil
	}
	return &s.value
}
