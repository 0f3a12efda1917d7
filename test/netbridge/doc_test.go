// Package netbridge runs the real agent on hosts that are network namespaces,
// with an underlay of two networks and a router between them, a real Consul, the
// standard CNI plugins, and rules such as flannel and Docker make. What must hold
// is measured in packets.
package netbridge
