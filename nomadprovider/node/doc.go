// Package node is the Kubernetes Node of a virtual node, and what it is made
// from: the Nomad clients of a pool.
//
// # Contract
//
// [Clients] knows the Nomad clients of one connection, kept current by Nomad's
// event stream, and whether Nomad is there at all: a stream may stay open on a
// server that has lost its leader, so the leader is asked for as well.
//
// [Node] registers one Node, keeps its lease, its capacity, its labels, its
// taints and its conditions, and makes it again when somebody deletes it. The
// condition nomad-kubelet.io/NomadReachable is the truth of the moment. Ready
// follows it only after a while (UnreachableAfter): NotReady makes Kubernetes
// evict the node's pods, while Nomad goes on running them through an outage of
// its servers.
//
// Capacity is what the ready and eligible clients of the pool have in sum,
// with one core worth as many of Nomad's MHz as on the client where it is worth
// most, so that a pod's requests translated by [Node.Profile] never add up to
// more than the clients have.
//
// A Node that another kubelet owns is never taken over, and taints and
// conditions that others put on ours are left alone.
package node
