// Package doctor checks that Kubernetes and Nomad are set up for virtual nodes
// before pods find out.
//
// # Contract
//
// A check ends in ok, warn, fail or unknown. fail means that pods would be at
// risk or would not start; warn that something a pod may ask for will not work;
// unknown that the token may not ask or that the agent does not answer, and
// then the remedy is a command for whoever may. Every result but ok says what
// will not work and the line that mends it.
//
// Nothing is changed anywhere: what a token may write is tried with dry runs.
package doctor
