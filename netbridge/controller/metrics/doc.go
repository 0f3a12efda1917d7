// Package metrics are what Prometheus sees of the controller, all below
// netbridge_controller_.
package metrics
