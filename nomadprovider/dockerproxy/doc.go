// Package dockerproxy stands between Nomad's docker driver and the Docker
// engine of a client, and mends by waiting what the driver gets wrong by haste.
//
//   - When a container exits, the driver stops its log reader without letting it
//     finish (drivers/docker/handle.go, run): the log of a container that lives
//     for moments is lost in part or whole. The proxy answers the driver's wait
//     for the exit once the log has been read to its end.
//   - While a command runs in a container the driver asks ten times a second
//     whether it still does, and stops copying when it does not
//     (drivers/docker/driver.go, ExecTaskStreaming; hashicorp/nomad#27146): the
//     end of the output is lost, and long calls cost dearly. The proxy answers
//     once the output has been delivered.
//
// It keeps an index of each container's log beside its task, for the kubelet API:
// when which bytes of which stream were written, and by which run (package
// logindex). It asks the engine for the times of lines when the driver's reader
// asks for the log, and takes them out of what the reader gets. The index is
// bounded and written every 20 ms; a line costs 0.2 microseconds. When it cannot
// be written it is removed, and the log is as it is without a proxy.
//
// It also knows what the driver does not ask for: the user of an image. A container
// that is not to run as root without being told as whom (runAsNonRoot without
// runAsUser), or that is told its group alone, says so by a label, and the proxy
// checks or completes it before the engine makes it. That a client has the proxy
// shows in the version that its docker driver reports.
//
// Calls of its own are asked for as commands in a container are (calls.go): one is
// attached to it, one carries connections into its network, and one tells what all
// containers of the client use.
//
// All else passes through as it is. It is optional: without it pods run with
// those faults. Like the engine itself it must stay up: the driver takes the end
// of its connection for the end of its containers.
package dockerproxy
