// Package forward carries many TCP connections to a pod's ports over one stream
// of bytes, such as a call of Nomad's exec API: [Serve] stands in the pod's
// network namespace, [Client] at the other end.
//
// The stream is shared by yamux. Each connection begins with a line from the
// client, the port in decimal, and a line in answer, empty or the error; what
// follows are the connection's bytes, each direction ending by itself.
package forward
