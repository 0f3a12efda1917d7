// Package ipam gives the pods of one Nomad client their addresses: a store on
// disk, the CNI plugin that Nomad calls through the bridge plugin, and the garbage
// collection of what a lost DEL left.
//
// An address is a file of its name that says whose it is, so the store can be
// read with ls and cat. The container's ID is the allocation's: a pod that is
// added again, after a restart of Nomad's agent or of the machine, gets the address
// it had. There is one store a machine, whatever the networks are called; two
// networks with a store each would give one address twice.
package ipam
