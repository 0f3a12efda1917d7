// Command netbridge-ipam is the CNI plugin that gives pods on Nomad their
// addresses. It is a program of its own because it is started for every pod, and a
// small one starts sooner.
package main

import "github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"

// version is stamped by the linker.
var version = "0.0.0-dev"

func main() { ipam.Main("netbridge-ipam " + version) }
