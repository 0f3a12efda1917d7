package stats

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// cAdvisor's metrics, with the labels that a kubelet gives them
// (pkg/kubelet/server/server.go, containerPrometheusLabelsFunc).
var (
	cadvisorLabels = []string{"container", "id", "image", "name", "namespace", "pod"}
	machineLabels  = []string{"boot_id", "machine_id", "system_uuid"}

	cadCPU              = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", append(slices.Clone(cadvisorLabels), "cpu"), nil)
	cadPeriods          = cadDesc("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.")
	cadThrottledPeriods = cadDesc("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.")
	cadThrottled        = cadDesc("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.")
	cadMemory           = cadDesc("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed")
	cadWorkingSet       = cadDesc("container_memory_working_set_bytes", "Current working set in bytes.")
	cadRSS              = cadDesc("container_memory_rss", "Size of RSS in bytes.")
	cadCache            = cadDesc("container_memory_cache", "Number of bytes of page cache memory.")
	cadSwap             = cadDesc("container_memory_swap", "Container swap usage in bytes.")
	cadStart            = cadDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds.")
	cadSeen             = cadDesc("container_last_seen", "Last time a container was seen by the exporter")
	cadError            = prometheus.NewDesc("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
	machineCores        = prometheus.NewDesc("machine_cpu_cores", "Number of logical CPU cores.", machineLabels, nil)
	machineMemory       = prometheus.NewDesc("machine_memory_bytes", "Amount of memory installed on the machine.", machineLabels, nil)

	cadNetwork = map[*prometheus.Desc]func(*dockerproxy.Interface) uint64{
		netDesc("receive_bytes", "bytes received"):                                func(i *dockerproxy.Interface) uint64 { return i.Rx.Bytes },
		netDesc("receive_packets", "packets received"):                            func(i *dockerproxy.Interface) uint64 { return i.Rx.Packets },
		netDesc("receive_errors", "errors encountered while receiving"):           func(i *dockerproxy.Interface) uint64 { return i.Rx.Errors },
		netDesc("receive_packets_dropped", "packets dropped while receiving"):     func(i *dockerproxy.Interface) uint64 { return i.Rx.Dropped },
		netDesc("transmit_bytes", "bytes transmitted"):                            func(i *dockerproxy.Interface) uint64 { return i.Tx.Bytes },
		netDesc("transmit_packets", "packets transmitted"):                        func(i *dockerproxy.Interface) uint64 { return i.Tx.Packets },
		netDesc("transmit_errors", "errors encountered while transmitting"):       func(i *dockerproxy.Interface) uint64 { return i.Tx.Errors },
		netDesc("transmit_packets_dropped", "packets dropped while transmitting"): func(i *dockerproxy.Interface) uint64 { return i.Tx.Dropped },
	}
)

func cadDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, cadvisorLabels, nil)
}

func netDesc(name, what string) *prometheus.Desc {
	return prometheus.NewDesc("container_network_"+name+"_total", "Cumulative count of "+what, append(slices.Clone(cadvisorLabels), "interface"), nil)
}

// CAdvisor is what /metrics/cadvisor serves: of cAdvisor's metrics those that are
// known.
func (g *Gatherer) CAdvisor() prometheus.Gatherer { return registry(cadvisorMetrics{g}) }

type cadvisorMetrics struct{ g *Gatherer }

// Describe implements [prometheus.Collector].
func (cadvisorMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range slices.AppendSeq([]*prometheus.Desc{
		cadCPU, cadPeriods, cadThrottledPeriods, cadThrottled, cadMemory, cadWorkingSet, cadRSS, cadCache, cadSwap, cadStart, cadSeen, cadError,
		machineCores, machineMemory,
	}, maps.Keys(cadNetwork)) {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (c cadvisorMetrics) Collect(to chan<- prometheus.Metric) {
	s := c.g.get(context.Background())
	metrics{to}.failed(cadError, s.err)
	c.machine(metrics{to}, s)
	for i := range s.pods {
		p := &s.pods[i]
		for j := range p.containers {
			tellContainer(metrics{to}, p.Object, &p.containers[j])
		}
	}
}

// machine is all of them together; the IDs are those that the Node has.
func (c cadvisorMetrics) machine(m metrics, s *snapshot) {
	if len(s.node.machines) == 0 {
		return
	}
	var cpus int
	var memory uint64
	for _, h := range s.node.machines {
		cpus += h.cpus
		memory += h.memory
	}
	ids := []string{c.g.o.Node, c.g.o.Node, c.g.o.Node}
	m.to <- prometheus.MustNewConstMetric(machineCores, prometheus.GaugeValue, float64(cpus), ids...)
	m.to <- prometheus.MustNewConstMetric(machineMemory, prometheus.GaugeValue, float64(memory), ids...)
}

func tellContainer(m metrics, pod *corev1.Pod, c *containerUsage) {
	id := translate.ContainerID(c.AllocID, translate.TaskName(c.Name))
	labels := []string{c.Name, id, imageOf(pod, c.Name), containerName(c.AllocID, c.Name), pod.Namespace, pod.Name}
	gauge := func(d *prometheus.Desc, v *uint64) {
		if v != nil {
			m.send(c.at, d, prometheus.GaugeValue, float64(*v), labels...)
		}
	}
	m.send(c.used.at, cadCPU, prometheus.CounterValue, float64(c.used.nanoseconds)/float64(time.Second), append(slices.Clone(labels), "total")...)
	if t := c.throttling; t != nil {
		if t.periods > 0 {
			m.send(c.at, cadPeriods, prometheus.CounterValue, float64(t.periods), labels...)
		}
		m.send(c.at, cadThrottledPeriods, prometheus.CounterValue, float64(t.throttled), labels...)
		m.send(c.at, cadThrottled, prometheus.CounterValue, t.time.Seconds(), labels...)
	}
	gauge(cadMemory, c.memory.usage)
	gauge(cadWorkingSet, &c.memory.workingSet)
	gauge(cadRSS, c.memory.rss)
	gauge(cadCache, c.memory.cache)
	gauge(cadSwap, c.memory.swap)
	m.send(c.at, cadStart, prometheus.GaugeValue, seconds(c.StartedAt), labels...)
	m.send(c.at, cadSeen, prometheus.GaugeValue, float64(c.at.Unix()), labels...)
	// The network is the pod's, not a container's.
	for i := range c.interfaces {
		for d, value := range cadNetwork {
			m.send(c.at, d, prometheus.CounterValue, float64(value(&c.interfaces[i])),
				"", "nomad://"+c.AllocID, "", "", pod.Namespace, pod.Name, c.interfaces[i].Name)
		}
	}
}

// imageOf is the image that the container runs, or is to run.
func imageOf(pod *corev1.Pod, container string) string {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return list[i].Image
			}
		}
	}
	return ""
}
