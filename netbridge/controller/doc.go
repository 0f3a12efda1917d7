// Package controller is the pod network's one process that acts for all nodes:
//
//	collect   records of nodes that are gone
//	export    the cluster's Services into Consul's catalog
//	imports   Consul's services into the cluster
//
// Two processes run, and one of them leads by a Lease. No node waits for either:
// the agents claim, publish and follow by themselves. The rooms share nothing but
// the informers; hold is the guard for whatever they take away, follow their way to
// keep up with Consul, tell their way to say what is wrong.
package controller
