package pods

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
)

// probeMetrics are the kubelet's of its probes
// (pkg/kubelet/prober/prober_manager.go), by virtual node. As there, a pod's are
// dropped when it goes.
type probeMetrics struct {
	nodes map[string]*nodeProbes

	mu sync.Mutex
	of map[types.UID]*corev1.Pod // those with probes
}

type nodeProbes struct {
	registry *prometheus.Registry
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newProbeMetrics(nodes []Node) *probeMetrics {
	m := &probeMetrics{nodes: map[string]*nodeProbes{}, of: map[types.UID]*corev1.Pod{}}
	for _, n := range nodes {
		p := &nodeProbes{
			registry: prometheus.NewRegistry(),
			total: prometheus.NewCounterVec(prometheus.CounterOpts{
				Subsystem: "prober", Name: "probe_total",
				Help: "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
			}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}),
			duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
				Subsystem: "prober", Name: "probe_duration_seconds", Help: "[ALPHA] Duration in seconds for a probe response.",
			}, []string{"probe_type", "container", "pod", "namespace"}),
		}
		p.registry.MustRegister(p.total, p.duration)
		m.nodes[n.Name()] = p
	}
	return m
}

// ProbeMetrics are those of the probes of a node's pods.
func (c *Controller) ProbeMetrics(node string) prometheus.Gatherer {
	return c.probes.nodes[node].registry
}

// attempted counts one. As the kubelet's worker does, it leaves the time out that
// a failure took (pkg/kubelet/prober/worker.go).
func (c *Controller) attempted(uid types.UID, a probes.Attempt) {
	pod := c.pod(uid)
	if pod == nil || c.probes.nodes[pod.Spec.NodeName] == nil {
		return
	}
	c.probes.mu.Lock()
	defer c.probes.mu.Unlock()
	c.probes.of[uid] = pod
	n := c.probes.nodes[pod.Spec.NodeName]
	result := "successful"
	switch a.Outcome {
	case probes.Failure:
		result = "failed"
	case probes.Unknown:
		result = "unknown"
	}
	n.total.WithLabelValues(string(a.Kind), result, a.Container, pod.Name, pod.Namespace, string(uid)).Inc()
	if a.Outcome != probes.Failure {
		n.duration.WithLabelValues(string(a.Kind), a.Container, pod.Name, pod.Namespace).Observe(a.Took.Seconds())
	}
}

// forget drops a pod's.
func (m *probeMetrics) forget(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pod := m.of[uid]
	if pod == nil {
		return
	}
	delete(m.of, uid)
	n := m.nodes[pod.Spec.NodeName]
	n.total.DeletePartialMatch(prometheus.Labels{"pod_uid": string(uid)})
	n.duration.DeletePartialMatch(prometheus.Labels{"pod": pod.Name, "namespace": pod.Namespace})
}
