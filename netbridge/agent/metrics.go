package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/guard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// metrics are what Prometheus sees, all below netbridge_.
type metrics struct {
	registry *prometheus.Registry

	consulUp, complete, peers, held, refused, fenced, addresses, capacity prometheus.Gauge
	collected, deviceMade, routesSet, routesGone                          prometheus.Counter
	rulesWritten, rulesForeign, rebound                                   prometheus.Counter
	errors, dns                                                           *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "netbridge", Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "netbridge", Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	m.consulUp = gauge("consul_up", "Whether Consul answered the last time it was asked.")
	m.complete = gauge("list_complete", "Whether the last list of nodes was complete.")
	m.peers = gauge("peers", "Nodes that packets are carried to.")
	m.held = gauge("peers_held", "Nodes that are missing from the list and kept.")
	m.refused = gauge("peers_refused", "Nodes whose records are not followed.")
	m.fenced = gauge("fenced", "Whether this node gives no addresses because they are another's.")
	m.addresses = gauge("addresses_used", "Addresses that pods of this node have.")
	m.capacity = gauge("addresses", "Addresses in the blocks of this node.")
	m.collected = counter("addresses_collected_total", "Addresses freed whose pods were gone without a DEL.")
	m.deviceMade = counter("device_made_total", "Times the overlay device was made.")
	m.routesSet = counter("overlay_set_total", "Neighbours, forwarding entries and routes set.")
	m.routesGone = counter("overlay_removed_total", "Neighbours, forwarding entries and routes removed.")
	m.rulesWritten = counter("rules_written_total", "Times the nftables table was written.")
	m.rulesForeign = counter("rules_foreign_total", "Times somebody else had changed the nftables table.")
	m.rebound = counter("connections_rebound_total", "Connections that began with a wrong source and were removed from conntrack.")
	m.errors = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "netbridge", Name: "errors_total", Help: "What could not be done."}, []string{"what"})
	m.dns = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "netbridge", Name: "dns_answers_total", Help: "Answers to pods, by where they came from."}, []string{"zone", "from"})
	m.registry.MustRegister(m.errors, m.dns)
	return m
}

func (m *metrics) rules(c guard.Changes) {
	if c.Written {
		m.rulesWritten.Inc()
	}
	if c.Foreign {
		m.rulesForeign.Inc()
	}
	m.rebound.Add(float64(c.Rebound))
}

func (m *metrics) overlay(c overlay.Changes, g overlay.Goal) {
	if c.Device {
		m.deviceMade.Inc()
	}
	m.routesSet.Add(float64(c.Set))
	m.routesGone.Add(float64(c.Gone))
	m.peers.Set(float64(len(g.Peers)))
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
