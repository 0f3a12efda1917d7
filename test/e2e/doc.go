// Package e2e tests nomad-kubelet on the real components: an API server,
// Nomad, Docker and qemu, in a local hybrid that the tests start themselves and
// stop when they end. It needs root and the programs under bin/ (make third-party build).
//
// TestRandomPods and TestChaos draw pods and outages at random from a fixed seed.
// The environment changes what is run:
//
//	E2E_PORT_BASE  where the ports of the hybrids begin (21000)
//	E2E_SEED       another seed, as the test's log names it
//	E2E_CHAOS      how many rounds of outages TestChaos has (1)
//	E2E_PODS       how many random pods TestChaos has (8)
//	E2E_EXEC_MIB   how many MiB go into a pod and out again (48)
//	E2E_DEBIAN     with any value a whole Debian is booted as a VM, for minutes without KVM
//
// A longer run, an hour or so, in which each round has new pods and outages:
//
//	E2E_CHAOS=25 E2E_SEED=$RANDOM go test -count=1 -timeout 3h -v ./test/e2e -run TestChaos
package e2e
