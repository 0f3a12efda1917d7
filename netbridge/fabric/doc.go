// Package fabric says what one pod network is made of: its settings, the record
// that each of its nodes publishes, and what a record may announce. All of it is
// pure; the keys in Consul are registry's.
package fabric
