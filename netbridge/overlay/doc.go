// Package overlay is what a node's agent wants of the way packets take to its
// peers; overlay/vxlan and overlay/wireguard bring the kernel there. The state is
// the kernel's: a backend adopts what it finds, changes only what differs, and
// takes nothing down when the agent ends.
package overlay
