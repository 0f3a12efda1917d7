// Package bridge keeps the device that the pods of a Nomad client hang on, with
// the gateway address of each of the client's blocks. The standard bridge plugin
// attaches pods to it, but would give it one IPv4 address only, so that a client's
// second block had no gateway.
package bridge
