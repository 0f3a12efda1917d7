// Package doctor checks that Kubernetes and Nomad are set up for virtual nodes
// before pods find out.
//
// # Contract
//
// The results of checks are those of package report; unknown is what the token may
// not ask, or what an agent does not answer.
//
// Nothing is changed anywhere: what a token may write is tried with dry runs.
package doctor
