// Package election lets one of several processes act, by a Lease.
package election
