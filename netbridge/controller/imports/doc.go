// Package imports brings Consul's services into the cluster: the passing instances
// of one become the endpoints of a Service that names it, and a Namespace can ask
// for such Services to be made.
//
//	Consul, one blocking query a service --answers--> pass <-- Services, Namespaces, EndpointSlices
//	                                                   |
//	                        make and remove Services, write EndpointSlices
//
// What Consul says of a service that it knows is followed at once, to the last
// endpoint. What Consul does not know any more is guarded: nothing is taken away
// while Consul is away, cut by rights or emptied, and many at once are held.
package imports
