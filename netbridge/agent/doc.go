// Package agent is the program of a node: it claims what the node needs in
// Consul, follows what the others announce, and brings device, routes and rules
// there. One goroutine does all of it; watches, events and timers only wake it.
//
//	Consul --watch--> registry --list--> peers --goal--> overlay, guard
//	  claim <-- own blocks --> cniconf, ipam store <-- garbage collection <-- Nomad
//
// It starts from the peers file, before Consul has answered, and takes nothing
// down when it ends: a killed agent costs no packet, and a new one adopts what it
// finds.
package agent
