package devcluster

import (
	"context"
	"fmt"
	"net"
	"time"
)

// checkPorts finds out before anything starts whether somebody else sits on a
// port, which a component would only say deep in its log.
func (c *Cluster) checkPorts(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, p := range c.portsOf() {
		if c.Running(p.component) {
			continue
		}
		// A killed program's main thread may end before its sockets are closed.
		var l net.Listener
		err := poll(ctx, 50*time.Millisecond, func(context.Context) (err error) {
			l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
			return err
		})
		if err != nil {
			return fmt.Errorf("port %d, for %s, is taken: stop what uses it, or choose other ports with --port-base: %w", p.port, p.component, err)
		}
		l.Close()
	}
	return nil
}

type portOf struct {
	component string
	port      int
}

func (c *Cluster) portsOf() []portOf {
	var out []portOf
	if c.ownKubernetes() {
		out = append(out, portOf{Etcd, c.Ports.Etcd}, portOf{Etcd, c.Ports.EtcdPeer}, portOf{APIServer, c.Ports.APIServer},
			portOf{ControllerManager, c.Ports.ControllerManager}, portOf{Scheduler, c.Ports.Scheduler})
	}
	for _, a := range c.agents() {
		out = append(out, portOf{a.component, a.http})
		if a.server {
			out = append(out, portOf{a.component, c.Ports.NomadRPC}, portOf{a.component, c.Ports.NomadSerf})
		}
	}
	if !c.opts.NoNomadKubelet && !c.opts.NoNomad {
		out = append(out, portOf{NomadKubelet, c.Ports.Kubelet})
	}
	if c.opts.OnPremNode {
		out = append(out, portOf{Kubelet, c.Ports.KubeletHealth})
	}
	return out
}
