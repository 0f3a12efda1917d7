package pods

import (
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Run is a container that runs now.
type Run struct {
	Container string
	// Alloc is where; an ephemeral container has its own.
	Alloc     *api.Allocation
	StartedAt time.Time
}

// Runs are the containers of the pod that run now, the ephemeral ones included.
func (c *Controller) Runs(pod *corev1.Pod) []Run {
	entry, _ := c.cache.Get(pod.UID)
	return runs(pod, entry)
}

func runs(pod *corev1.Pod, entry allocs.Entry) (out []Run) {
	add := func(name string, alloc *api.Allocation) {
		if alloc == nil || alloc.ClientTerminalStatus() {
			return
		}
		if ts := alloc.TaskStates[translate.TaskName(name)]; ts != nil && ts.State == "running" && !ts.StartedAt.IsZero() {
			out = append(out, Run{name, alloc, ts.StartedAt})
		}
	}
	own := primary(pod, entry)
	for _, ct := range containersOf(pod) {
		add(ct.Name, own)
	}
	for i := range pod.Spec.EphemeralContainers {
		name := pod.Spec.EphemeralContainers[i].Name
		if companion := entry.Companions[name]; len(companion.Allocs) > 0 {
			add(name, companion.Allocs[0])
		}
	}
	return out
}
