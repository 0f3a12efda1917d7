package pods

import (
	"context"
	"path"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// imageIDBytes bounds the ID of an image.
const imageIDBytes = 1024

// imageOf is the ID of the image of one run of a container.
type imageOf struct {
	run time.Time
	id  string
}

// readImages reads which images the containers run that have started, once a run.
// Nomad does not tell; the docker proxy leaves a file.
func (c *Controller) readImages(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation) {
	n := c.nodes[pod.Spec.NodeName]
	if alloc == nil || n == nil || !n.Profile().DockerProxy || c.driver(pod) != "docker" {
		return
	}
	for _, ct := range containersOf(pod) {
		task := translate.TaskName(ct.Name)
		ts := alloc.TaskStates[task]
		if ts == nil || ts.State != "running" {
			continue
		}
		var known bool
		c.with(pod.UID, func(s *podState) { known = s.images[task].run.Equal(ts.StartedAt) })
		if known {
			continue
		}
		id, err := c.readFile(ctx, alloc, "/v1/client/fs/cat/", map[string]string{"path": path.Join(task, translate.ImageFile)}, imageIDBytes)
		if err != nil {
			c.Log.Debug("the image of a container", "pod", pod.UID, "container", ct.Name, "error", err)
			continue // the next pass tries again
		}
		c.with(pod.UID, func(s *podState) { s.images[task] = imageOf{ts.StartedAt, string(id)} })
	}
}
