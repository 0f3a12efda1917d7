// Package kubelet is the HTTPS API of a virtual node that the API server calls
// for kubectl logs, exec, attach and port-forward, and metrics-server and Prometheus
// for what pods use.
//
// # Contract
//
// It is closed: a request needs a client certificate of the configured CA or a
// token that the API server vouches for (TokenReview), and then the permission
// that a kubelet would ask for (SubjectAccessReview on nodes/proxy, nodes/pods
// and so on, as in the kubelet's server/auth.go). There is no anonymous access,
// and a server without an authenticator does not start.
//
// Messages and codes are the kubelet's, so that kubectl shows what its users
// know.
//
// An ephemeral container is found by its name like any other, in the allocation
// that its status tells.
//
// Attach and port-forward are calls of Nomad's exec API, too: to the docker proxy
// on the pod's client, which is attached to the container or enters its network,
// or for ports to the pod's companion.
//
// /stats/summary and what is below /metrics are filled by the rooms that know
// (stats, and pods for the probes); /metrics itself is of this process, and the same
// for all virtual nodes in it but for the kubelet's counts of pods and containers.
//
// # Logs
//
// Nomad keeps a container's stdout and stderr as two series of files without
// timestamps (alloc/logs/<task>.stdout.0 and on), which go on over restarts. What
// they lack stands in an index that the docker proxy keeps beside the task
// (package logindex). With it a log is the kubelet's:
//
//   - It is that of one run, the current one or, with previous, the one before;
//     of runs before these nothing is shown. A follow ends with its run.
//   - Both streams come in the order in which Docker's engine noted them, and each
//     line with its time there. A container that writes more than 25,600 pieces
//     a second has times of 10 ms, and within these one stream after the other.
//   - tailLines is counted over both streams, and since is exact.
//   - Of a log of very short lines the index may cover less than Nomad keeps
//     (30 MB a stream): it is of 8 MB, some six bytes a line. What is older is
//     not shown.
//
// It is read as it is sent, so that a client that does not read keeps only its
// own log waiting. A follow holds one connection to Nomad, for the index; what
// the index tells is fetched by short calls.
//
// Without it, on clients that have no docker proxy and on other drivers:
//
//   - The log is that of all runs, a follow goes on over restarts, and previous
//     is refused.
//   - What was written before the request comes one stream after the other, the
//     one written to last coming last; what is written while following comes as
//     it arrives. Containers with a terminal have one stream only.
//   - tailLines is exact, over the streams in that order.
//   - Timestamps are the time of arrival while following, and for older lines
//     the time of their file's last write: never earlier than the true ones.
//   - since leaves out a file whose last write is older, and nothing within one.
//
// A virtual node reaches its clients by way of the Nomad agent that it is
// configured with, so clients need not be reachable.
package kubelet
