// Package peers decides which peers hold, from one list of records to the next:
// what is new is followed at once, what is missing is let go only after a
// complete list, and a mass of missing ones not before they have stayed missing
// for a while. It also keeps the file from which a node starts when Consul is
// away.
package peers
