package kubelet

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"
)

// metricsRoutes are those by which metrics-server and Prometheus know what a node
// and its pods use.
func (s *Server) metricsRoutes(mux *table) {
	if s.o.Stats != nil {
		mux.HandleFunc("GET /stats/summary", s.summary)
		mux.HandleFunc("POST /stats/summary", s.summary)
	}
	own := prometheus.NewRegistry()
	own.MustRegister(running{s})
	for path, g := range map[string]prometheus.Gatherer{
		// The first is what the libraries tell of this process, whose are all nodes.
		"/metrics":          prometheus.Gatherers{legacyregistry.DefaultGatherer, own},
		"/metrics/resource": s.o.Metrics.Resource,
		"/metrics/cadvisor": s.o.Metrics.CAdvisor,
		"/metrics/probes":   s.o.Metrics.Probes,
	} {
		if g != nil {
			mux.HandleFunc("GET "+path, promhttp.HandlerFor(g, promhttp.HandlerOpts{
				ErrorHandling: promhttp.ContinueOnError,
				ErrorLog:      s.o.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
			}).ServeHTTP)
		}
	}
}

// summary is as the kubelet's (pkg/kubelet/server/stats/handler.go).
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, fmt.Sprintf("Internal Error: parse form failed: %v", err), http.StatusInternalServerError)
		return
	}
	only := r.Form["only_cpu_and_memory"]
	summary, err := s.o.Stats.Summary(r.Context(), len(only) == 1 && only[0] == "true")
	if err != nil {
		http.Error(w, fmt.Sprintf("Internal Error: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(summary); err != nil {
		s.o.Log.Debug("the summary of statistics was not sent", "error", err)
	}
}

// The kubelet's own metrics (pkg/kubelet/metrics/metrics.go), as far as they have a
// meaning here.
var (
	nodeName          = prometheus.NewDesc("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.", []string{"node"}, nil)
	runningPods       = prometheus.NewDesc("kubelet_running_pods", "[ALPHA] Number of pods that have a running pod sandbox", nil, nil)
	runningContainers = prometheus.NewDesc("kubelet_running_containers", "[ALPHA] Number of containers currently running", []string{"container_state"}, nil)
)

// running counts the pods and containers of the node by their status.
type running struct{ s *Server }

// Describe implements [prometheus.Collector].
func (running) Describe(to chan<- *prometheus.Desc) {
	to <- nodeName
	to <- runningPods
	to <- runningContainers
}

// Collect implements [prometheus.Collector].
func (r running) Collect(to chan<- prometheus.Metric) {
	to <- prometheus.MustNewConstMetric(nodeName, prometheus.GaugeValue, 1, r.s.o.Node)
	if r.s.o.List == nil {
		return
	}
	pods, states := 0, map[string]int{}
	for _, p := range r.s.o.List() {
		runs := states["running"]
		count(states, p)
		if states["running"] > runs {
			pods++
		}
	}
	to <- prometheus.MustNewConstMetric(runningPods, prometheus.GaugeValue, float64(pods))
	for state, n := range states {
		to <- prometheus.MustNewConstMetric(runningContainers, prometheus.GaugeValue, float64(n), state)
	}
}

// count counts a pod's containers by their state, in the runtime's terms. Those that
// wait are not made yet.
func count(states map[string]int, p *corev1.Pod) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			switch {
			case list[i].State.Running != nil:
				states["running"]++
			case list[i].State.Terminated != nil:
				states["exited"]++
			}
		}
	}
}
