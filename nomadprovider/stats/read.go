package stats

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// findings are what one gathering has read.
type findings struct {
	mu         sync.Mutex
	containers map[run]sample
	hosts      map[string]hostSample
	errs       []error
}

func (f *findings) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// errsKept bounds what is told of a failure that may be many allocations'.
const errsKept = 3

func (f *findings) fail(err error) {
	f.change(func() {
		if len(f.errs) < errsKept {
			f.errs = append(f.errs, err)
		}
	})
}

// placed is a container and the pod that it is of.
type placed struct {
	Container
	pod *Pod
	// network says that the pod's traffic is told with this container.
	network bool
}

// read asks for everything: first the docker proxies and the machines, then, for
// what is left, Nomad by the allocation.
func (g *Gatherer) read(ctx context.Context, pods []Pod, clients []Client) *findings {
	f := &findings{containers: map[run]sample{}, hosts: map[string]hostSample{}}
	proxied := map[string]bool{}
	var group errgroup.Group
	group.SetLimit(AtOnce)
	byClient := byProxy(pods, clients)
	for id, list := range byClient {
		group.Go(func() error {
			if g.readProxy(ctx, list, f) {
				f.change(func() { proxied[id] = true })
			}
			return nil
		})
	}
	for _, c := range clients {
		if !c.Counted {
			continue
		}
		group.Go(func() error {
			h, err := g.o.Source.client(ctx, c.ID)
			if err != nil {
				f.fail(err)
				return nil
			}
			f.change(func() { f.hosts[c.ID] = h })
			return nil
		})
	}
	_ = group.Wait() // none fails
	g.readNomad(ctx, pods, clients, proxied, f)
	return f
}

// byProxy are the containers that docker proxies can tell of, by their client.
func byProxy(pods []Pod, clients []Client) map[string][]placed {
	has := map[string]bool{}
	for _, c := range clients {
		has[c.ID] = c.DockerProxy
	}
	out := map[string][]placed{}
	for i := range pods {
		p, network := &pods[i], !pods[i].HostNetwork
		if p.Driver != driverDocker {
			continue
		}
		for _, c := range p.Containers {
			if has[c.Client] {
				out[c.Client] = append(out[c.Client], placed{c, p, network})
				network = false
			}
		}
	}
	return out
}

// readProxy makes the one call for a client, in the container that has run for
// longest; it says whether there was an answer.
func (g *Gatherer) readProxy(ctx context.Context, list []placed, f *findings) bool {
	var want dockerproxy.UsageRequest
	in := list[0]
	for _, c := range list {
		if c.StartedAt.Before(in.StartedAt) {
			in = c
		}
		want.Containers = append(want.Containers, dockerproxy.UsageOf{Name: containerName(c.AllocID, c.Name), Network: c.network})
	}
	answer, err := g.o.Source.proxy(ctx, g.o.Namespace, in.AllocID, translate.TaskName(in.Name), want)
	if err != nil {
		// Nomad tells less well, but it does.
		g.o.Log.Debug("a docker proxy did not tell", "client", in.Client, "error", err)
		return false
	}
	f.change(func() {
		for _, c := range list {
			if u, ok := answer[containerName(c.AllocID, c.Name)]; ok {
				f.containers[c.run()] = fromProxy(u)
			}
		}
	})
	return true
}

// readNomad asks for the allocations of containers that no docker proxy was asked
// about. A client that does not answer once is not asked again.
func (g *Gatherer) readNomad(ctx context.Context, pods []Pod, clients []Client, proxied map[string]bool, f *findings) {
	answers := map[string]bool{}
	for _, c := range clients {
		answers[c.ID] = true
	}
	allocs := map[string][]placed{}
	for i := range pods {
		p := &pods[i]
		for _, c := range p.Containers {
			if answers[c.Client] && !(proxied[c.Client] && p.Driver == driverDocker) {
				allocs[c.AllocID] = append(allocs[c.AllocID], placed{Container: c, pod: p})
			}
		}
	}
	var group errgroup.Group
	group.SetLimit(AtOnce)
	for id, list := range allocs {
		group.Go(func() error {
			client, ok := list[0].Client, false
			if f.change(func() { ok = answers[client] }); !ok {
				return nil
			}
			tasks, err := g.o.Source.allocation(ctx, g.o.Namespace, id)
			if err != nil {
				f.fail(err)
				f.change(func() { answers[client] = false })
				return nil
			}
			guest := g.guestMemory(ctx, list[0])
			f.change(func() {
				for _, c := range list {
					if s, ok := fromNomad(tasks[translate.TaskName(c.Name)], c.pod.Driver); ok && s.at.After(c.StartedAt) {
						if guest != nil {
							s.memory = *guest
						}
						f.containers[c.run()] = s
					}
				}
			})
			return nil
		})
	}
	_ = group.Wait() // none fails
}

// guestMemory is what a VM's guest says that it uses; nil where it does not, and
// what qemu takes on the client stands for it, and for pods that are none.
func (g *Gatherer) guestMemory(ctx context.Context, c placed) *memory {
	if c.pod.Driver != driverQemu {
		return nil
	}
	m, err := g.o.Source.guest(ctx, g.o.Namespace, c.AllocID)
	if err != nil {
		g.o.Log.Debug("a guest did not tell of its memory", "pod", c.pod.Object.Namespace+"/"+c.pod.Object.Name, "error", err)
		return nil
	}
	used := m.Total - m.Available
	return &memory{workingSet: used, usage: &used}
}
