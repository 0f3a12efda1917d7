// Package guard keeps other rules of a machine from spoiling the pod network:
// masquerading that would hide who calls, a forward policy that drops, and
// packets that do not come from a peer. It owns one nftables table and replaces
// it as a whole; in others' tables it only adds to iptables' FORWARD chain, where
// that drops.
//
// Sources are kept by "snat to ip saddr" in front of all other source NAT: a
// binding that changes nothing, which later chains, in whatever table, find made
// and leave. A mere accept would not keep the next table from masquerading. The
// binding lasts as long as the connection, through a flush of all rules, too;
// what began in between with a wrong source has its conntrack entry removed.
package guard
