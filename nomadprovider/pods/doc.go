// Package pods is the one queue through which pods become Nomad jobs and what
// Nomad says of them becomes pod status.
//
// The key is the pod's UID, and the loop is level-triggered: each pass looks
// at the pod, its job and its allocation as they are now and moves one step.
// Whatever changes, a pod, an object it names, an allocation, a timer, only
// puts the UID into the queue. A restart of the process is therefore nothing
// but another pass over every UID.
//
// This package is the only writer of Nomad jobs, of gate Variables and of pod
// status. A job is registered only if it does not exist, and never updated.
package pods
