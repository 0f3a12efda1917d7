// Package collect takes away the records of nodes that are gone for good, and lets
// others have their blocks and overlay addresses.
//
// A node is gone when its agent has been silent for long and who knows its machine
// says so, too: Nomad, that the client is down or forgotten and runs nothing; the
// API server, that no Node has that UID. Any doubt about either is a reason to wait.
// A Node's record does not wait where a Node that is there announces its range.
package collect
