package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Metrics are one process's.
type Metrics struct {
	Registry *prometheus.Registry

	// Leads is 1 in the process that acts. All others are its.
	Leads prometheus.Gauge
	// Exported counts instances in Consul's catalog, Imported endpoints in the
	// cluster, Made the Services that namespaces asked for.
	Exported, Imported, Made prometheus.Gauge
	// Released counts nodes whose records were taken away, by kind.
	Released *prometheus.CounterVec
	// Held is what is missing and kept all the same, Wrong the objects that an Event
	// tells about, Errors what could not be done, each by room.
	Held, Wrong *prometheus.GaugeVec
	Errors      *prometheus.CounterVec
}

// New registers all of them.
func New() *Metrics {
	const ns, sub = "netbridge", "controller"
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, []string{"room"})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, []string{label})
	}
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		Leads:    gauge("leads", "Whether this process is the one that acts."),
		Exported: gauge("exported_instances", "Instances of the cluster's Services in Consul's catalog."),
		Imported: gauge("imported_endpoints", "Endpoints in the cluster that are instances of Consul's services."),
		Made:     gauge("made_services", "Services made for namespaces that import."),
		Released: counters("nodes_released_total", "Nodes that were gone, whose records were taken away.", "kind"),
		Held:     gauges("held", "What is missing and kept for now."),
		Wrong:    gauges("wrong_objects", "What Events tell about."),
		Errors:   counters("errors_total", "Passes that could not do all.", "room"),
	}
	m.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.Leads, m.Exported, m.Imported, m.Made, m.Released, m.Held, m.Wrong, m.Errors)
	return m
}
