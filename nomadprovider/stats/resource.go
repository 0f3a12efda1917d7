package stats

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The kubelet's own metrics (pkg/kubelet/metrics/collectors/resource_metrics.go).
var (
	podLabels       = []string{"pod", "namespace"}
	containerLabels = []string{"container", "pod", "namespace"}

	nodeCPU        = prometheus.NewDesc("node_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemory     = prometheus.NewDesc("node_memory_working_set_bytes", "[STABLE] Current working set of the node in bytes", nil, nil)
	containerCPU   = prometheus.NewDesc("container_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	containerMem   = prometheus.NewDesc("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes", containerLabels, nil)
	containerSwap  = prometheus.NewDesc("container_swap_usage_bytes", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems", containerLabels, nil)
	containerStart = prometheus.NewDesc("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds", containerLabels, nil)
	podCPU         = prometheus.NewDesc("pod_cpu_usage_seconds_total", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	podMemory      = prometheus.NewDesc("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", podLabels, nil)
	podSwap        = prometheus.NewDesc("pod_swap_usage_bytes", "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems", podLabels, nil)
	resourceError  = prometheus.NewDesc("resource_scrape_error", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

// Resource is what /metrics/resource serves.
func (g *Gatherer) Resource() prometheus.Gatherer { return registry(resourceMetrics{g}) }

// registry gathers from one collector.
func registry(c prometheus.Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	return r
}

type resourceMetrics struct{ g *Gatherer }

// Describe implements [prometheus.Collector].
func (resourceMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodeCPU, nodeMemory, containerCPU, containerMem, containerSwap, containerStart, podCPU, podMemory, podSwap, resourceError} {
		to <- d
	}
}

// Collect implements [prometheus.Collector]. What could not be read is an error
// even when the last values are still told.
func (r resourceMetrics) Collect(to chan<- prometheus.Metric) {
	found := r.g.get(context.Background())
	m := metrics{to}
	m.failed(resourceError, found.err)
	s, err := r.g.summary(found, true)
	if err != nil {
		return
	}
	m.cpu(nodeCPU, s.Node.CPU)
	m.memory(nodeMemory, s.Node.Memory)
	for _, p := range s.Pods {
		labels := []string{p.PodRef.Name, p.PodRef.Namespace}
		m.cpu(podCPU, p.CPU, labels...)
		m.memory(podMemory, p.Memory, labels...)
		m.swap(podSwap, p.Swap, labels...)
		for _, c := range p.Containers {
			labels := []string{c.Name, p.PodRef.Name, p.PodRef.Namespace}
			to <- prometheus.MustNewConstMetric(containerStart, prometheus.GaugeValue, seconds(c.StartTime.Time), labels...)
			m.cpu(containerCPU, c.CPU, labels...)
			m.memory(containerMem, c.Memory, labels...)
			m.swap(containerSwap, c.Swap, labels...)
		}
	}
}

// metrics sends metrics that carry the time of their samples, as the kubelet's do.
type metrics struct{ to chan<- prometheus.Metric }

func (m metrics) send(at time.Time, d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
	m.to <- prometheus.NewMetricWithTimestamp(at, prometheus.MustNewConstMetric(d, kind, v, labels...))
}

func (m metrics) failed(d *prometheus.Desc, err error) {
	v := 0.0
	if err != nil {
		v = 1
	}
	m.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
}

func (m metrics) cpu(d *prometheus.Desc, s *statsapi.CPUStats, labels ...string) {
	if s != nil && s.UsageCoreNanoSeconds != nil {
		m.send(s.Time.Time, d, prometheus.CounterValue, float64(*s.UsageCoreNanoSeconds)/float64(time.Second), labels...)
	}
}

func (m metrics) memory(d *prometheus.Desc, s *statsapi.MemoryStats, labels ...string) {
	if s != nil {
		m.gauge(d, s.Time, s.WorkingSetBytes, labels...)
	}
}

func (m metrics) swap(d *prometheus.Desc, s *statsapi.SwapStats, labels ...string) {
	if s != nil {
		m.gauge(d, s.Time, s.SwapUsageBytes, labels...)
	}
}

func (m metrics) gauge(d *prometheus.Desc, at metav1.Time, v *uint64, labels ...string) {
	if v != nil {
		m.send(at.Time, d, prometheus.GaugeValue, float64(*v), labels...)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
