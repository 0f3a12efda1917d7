// Package cniconf writes the CNI network that Nomad's allocations join
// (network { mode = "cni/netbridge" }): the standard bridge plugin, with the
// addresses from netbridge's own.
//
// Nomad reads the file anew for every allocation, but finds the network only at
// its start or at SIGHUP, and then never loses it until it is restarted. So the
// file is written once there is a block, and never removed: a node that must not
// give addresses is fenced in its address store.
package cniconf
