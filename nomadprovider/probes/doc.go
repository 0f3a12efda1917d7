// Package probes runs the probes of a pod's containers as the kubelet does
// (pkg/kubelet/prober, pkg/probe of Kubernetes 1.35). It knows neither pods nor
// Nomad: it is handed the probes that are to run now, and reports what comes of
// them. The companion uses it beside the pod for what goes over the network,
// and nomad-kubelet for commands.
package probes
