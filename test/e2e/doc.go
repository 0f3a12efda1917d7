// Package e2e tests nomad-kubelet on the real components: an API server,
// Nomad, Docker and qemu, in a local hybrid that the tests start themselves and
// stop when they end. It needs root and the programs under bin/ (make third-party build).
package e2e
