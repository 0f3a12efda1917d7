// Package export brings the cluster's Services into Consul's catalog: one instance
// for each ready endpoint, on a node of the catalog's that no agent has.
//
//	Services, EndpointSlices, Namespaces --wanted--> pass <--there-- Consul's node
//	                                                  |
//	                                     register, deregister
//
// It keeps no state: what is there is told by Consul, each instance with the
// Service that it comes from. Only what says that it comes from this fabric and this
// cluster is ever taken away; at once where the Service is there and has not that
// endpoint, with a guard where the Service is missing.
package export
