// Package devcluster starts and stops a local hybrid: a Kubernetes control
// plane, a Docker engine, a Nomad agent (or two) and nomad-kubelet between them,
// all as separate processes with their state under one directory.
//
// It serves `nomad-kubelet dev`, `make demo` and the tests. The processes outlive
// the program that started them; a later program finds them again by the state
// directory ([Open]). Several clusters run side by side when their directories
// and port bases differ.
//
// Every process carries the state directory in its environment. That is how
// [Cluster.Down] recognises what is ours, even after a parent was killed, and
// why it never has to guess by name.
package devcluster
