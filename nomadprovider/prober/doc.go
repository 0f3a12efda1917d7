// Package prober runs the probes of all pods: commands by Nomad's exec, and what
// goes over the network from a task of the pod, which is in its network
// namespace, so that no pod network is needed. That task's program is handed the
// pod's probes by one exec call that lasts as long as the pod.
package prober
