package pods

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const reasonImage = "ImageNotUpdated"

// note is one event.
type note struct{ kind, reason, message string }

// tellImages says that a container will not get the image that its pod now
// names: Nomad would replace the allocation, and with it the pod.
func (c *Controller) tellImages(old, pod *corev1.Pod) {
	was := map[string]string{}
	for _, ct := range containersOf(old) {
		was[ct.Name] = ct.Image
	}
	for _, ct := range containersOf(pod) {
		if was[ct.Name] != ct.Image && translate.AllocID(&pod.Status) != "" {
			c.Recorder.Eventf(pod, corev1.EventTypeWarning, reasonImage,
				"container %s keeps its image until the pod is made anew: Nomad replaces the allocation of a job that changes", ct.Name)
		}
	}
}

// tellContainers makes events of what a new status tells of containers, with the
// kubelet's reasons (pkg/kubelet/events/event.go).
func (c *Controller) tellContainers(pod *corev1.Pod, status *corev1.PodStatus) {
	for _, n := range changes(&pod.Status, status) {
		c.Recorder.Event(pod, n.kind, n.reason, truncate(n.message, 900))
	}
}

// changes lists what a user would like to read of the way from one status to
// another, each once.
func changes(old, now *corev1.PodStatus) (out []note) {
	for _, lists := range [][2][]corev1.ContainerStatus{
		{old.InitContainerStatuses, now.InitContainerStatuses}, {old.ContainerStatuses, now.ContainerStatuses},
	} {
		for i := range lists[1] {
			st := &lists[1][i]
			var was corev1.ContainerState
			for j := range lists[0] {
				if lists[0][j].Name == st.Name {
					was = lists[0][j].State
				}
			}
			if n, ok := change(st, was); ok && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

func change(st *corev1.ContainerStatus, was corev1.ContainerState) (note, bool) {
	if r := st.State.Running; r != nil {
		return note{corev1.EventTypeNormal, "Started", "Started container " + st.Name},
			was.Running == nil || was.Running.StartedAt.Unix() != r.StartedAt.Unix()
	}
	if t := st.State.Terminated; t != nil && !t.StartedAt.IsZero() && was.Running == nil && was.Terminated == nil {
		// It ended before it was told of.
		return note{corev1.EventTypeNormal, "Started", "Started container " + st.Name}, true
	}
	w := st.State.Waiting
	if w == nil || was.Waiting != nil && was.Waiting.Reason == w.Reason && was.Waiting.Message == w.Message {
		return note{}, false
	}
	switch {
	case w.Reason == "CrashLoopBackOff":
		return note{corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s", st.Name)}, true
	case w.Reason == "ImagePullBackOff":
		return note{corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", st.Image)}, true
	case w.Reason == "ErrImagePull":
		return note{corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %s", st.Image, w.Message)}, true
	case strings.HasSuffix(w.Reason, "Error"):
		return note{corev1.EventTypeWarning, "Failed", "Error: " + w.Message}, true
	}
	return note{}, false
}
