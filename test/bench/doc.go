// Package bench measures nomad-kubelet on the real components, in a local
// hybrid of its own, and prints each figure beside what it has to be measured
// against: the very same jobs registered with Nomad directly, in the same run
// on the same machine.
//
// Nothing runs unless benchmarks are asked for (make bench, or go test -bench).
// The result is a table on standard output and .dev/bench.json. A goal that is
// missed is only told, unless -strict is given: on a machine that does other
// things, too, seconds say little, and only the ratio of two alike runs says
// something.
//
// nomad-kubelet talks to Nomad through a proxy of the benchmark that counts its
// requests; the direct registrations do not, so what the proxy costs counts
// against nomad-kubelet.
package bench
