// Package netbridge and those below it are the pod network that spans a
// Kubernetes cluster and Nomad: one agent on every Nomad client and Kubernetes
// node, with Consul as the record of who has which addresses. The kernel carries
// the packets: what the agent sets up stays when it ends, when it is replaced,
// and when Consul is away.
//
// It shares nothing with nomadprovider; the two meet in Nomad (an allocation's
// network and address) and in Consul.
package netbridge
