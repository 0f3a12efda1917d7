package dockerproxy

import (
	"context"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netns"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
)

// inNamespaceOf dials in the network namespace of a process, which it holds until
// done is called.
func inNamespaceOf(pid int) (dial func(ctx context.Context, port int) (net.Conn, error), done func(), err error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, nil, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	type answer struct {
		conn net.Conn
		err  error
	}
	dial = func(ctx context.Context, port int) (net.Conn, error) {
		made := make(chan answer, 1)
		go func() {
			// The thread is spoilt for others: it ends with this goroutine.
			runtime.LockOSThread()
			if err := netns.Set(ns); err != nil {
				made <- answer{err: fmt.Errorf("enter the network namespace of process %d: %w", pid, err)}
				return
			}
			conn, err := forward.Local(ctx, port)
			made <- answer{conn, err}
		}()
		a := <-made
		return a.conn, a.err
	}
	return dial, func() { _ = ns.Close() }, nil
}
