// Command conformance runs the upstream Kubernetes e2e suite against a virtual
// node, and against a real kubelet with containerd as the control, and writes
// docs/conformance.md from what both said.
//
//	go run ./test/conformance -node both
//	go run ./test/conformance -docs
//
// Each node is the only one of a cluster of its own, started by
// [github.com/nomad-kubelet/nomad-kubelet/internal/devcluster] below
// .dev/conformance and stopped at the end, also after an interrupt.
//
// The suite's images are built here under their upstream names (images.go),
// because the machine need not reach a registry: the same archive goes to Docker
// and to containerd, so that a spec which fails for an image's sake fails on
// both.
//
// A run leaves JUnit, the suite's log and a summary in .dev/conformance/NODE.
// Kept are passes over the specs of whole special interest groups: "sig-node", and
// so on, and "sig-node, serial" (-serial) for the specs that want the cluster for
// themselves. Their results are in
// test/conformance/results, from which docs/conformance.md is made at any time.
// Why a spec fails is in reasons.yaml, which a person writes: a failure without
// a reason, and a reason whose spec passes, are errors of the command.
package main
