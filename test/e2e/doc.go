// Package e2e tests nomad-kubelet on the real components: an API server,
// Nomad, Docker and qemu, in a local hybrid that the tests start themselves and
// stop when they end. It needs root and the programs under bin/ (make third-party build).
//
// Some of it is random, with a fixed seed. By the environment: E2E_SEED tries
// another, and E2E_PORT_BASE is where the ports begin.
package e2e
