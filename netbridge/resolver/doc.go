// Package resolver is the DNS server of one Nomad client's pods: it asks the
// cluster's DNS for the cluster's names, Consul for Consul's, and the machine's own
// servers for the rest.
//
// Answers are kept for their time to live, and for a day longer: when nobody
// answers, or not soon, a pod gets what was true the last time (RFC 8767). Many
// pods that ask the same at once cost one question.
package resolver
