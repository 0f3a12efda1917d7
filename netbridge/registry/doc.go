// Package registry keeps a fabric's records in Consul's KV store:
//
//	netbridge/v1/<fabric>/config                 the settings; an operator's
//	netbridge/v1/<fabric>/blocks/10.77.3.0-25    whose block it is
//	netbridge/v1/<fabric>/hosts/10.78.0.17       whose overlay address it is
//	netbridge/v1/<fabric>/nodes/.keep            makes an empty list tell itself from a lost one
//	netbridge/v1/<fabric>/nodes/<kind>/<id>      what a node announces
//	netbridge/v1/<fabric>/seen/<kind>/<id>       when its agent last said that it lives; not watched
//
// Ownership is permanent: a claim is made by check-and-set and never expires,
// because an expired claim whose owner still has pods is an address given out
// twice. Whether a node lives is no matter of this package: who is certain that it
// does not releases what it had.
//
// An error of Consul's is never an answer. A write that failed may have happened,
// so what is there is read again; a list counts as complete only if Consul
// vouches for it and it holds what must be in it.
package registry
