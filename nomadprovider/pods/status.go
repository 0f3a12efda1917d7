package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// facts gathers what translate.Status is handed besides pod and allocation.
func (c *Controller) facts(pod *corev1.Pod, alloc *api.Allocation, unplaced string, waiting *corev1.ContainerStateWaiting) translate.Facts {
	f := translate.Facts{
		Now: c.Clock.Now(), Unplaced: unplaced, Waiting: waiting,
		StartFailures: map[string]uint64{}, Backoff: map[string]time.Duration{}, Messages: map[string]translate.Message{},
		Images:   map[string]string{},
		Starting: map[string]bool{},
	}
	c.with(pod.UID, func(s *podState) { f.Ephemeral = s.ephemeral })
	if alloc == nil {
		return f
	}
	for _, ct := range containersOf(pod) {
		f.Starting[translate.TaskName(ct.Name)] = c.postStartDue(pod, alloc, ct)
	}
	f.Addresses = c.addresses(pod, alloc)
	about := c.probing(pod, alloc)
	c.with(pod.UID, func(s *podState) {
		f.Probed = probedFacts(pod, alloc, about, s)
		maps.Copy(f.Messages, s.messages)
		for task, i := range s.images {
			if ts := alloc.TaskStates[task]; ts != nil && ts.StartedAt.Equal(i.run) {
				f.Images[task] = i.id
			}
		}
		for task, ts := range alloc.TaskStates {
			if _, known := s.startFailures[task]; ts.StartedAt.IsZero() {
				s.startFailures[task] = ts.Restarts
			} else if !known {
				s.startFailures[task] = formerStartFailures(pod, task, ts)
			}
			f.StartFailures[task] = s.startFailures[task]
			if cr := s.crashes[task]; cr != nil {
				f.Backoff[task] = cr.backoff()
			}
		}
	})
	return f
}

// addresses is what is known of the client's.
func (c *Controller) addresses(pod *corev1.Pod, alloc *api.Allocation) translate.Addresses {
	n := c.nodes[pod.Spec.NodeName]
	if n == nil {
		return translate.Addresses{}
	}
	return translate.Addresses{HostIP: n.HostIP(alloc.NodeID), HostNetwork: n.Profile().Network == translate.NetworkHost}
}

// formerStartFailures is, after a restart of this process, what Nomad counted
// beyond the restarts that were reported, if the task still is in the run that
// was reported last.
func formerStartFailures(pod *corev1.Pod, task string, ts *api.TaskState) uint64 {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			st := &list[i]
			if r := st.State.Running; translate.TaskName(st.Name) == task && ts.State == "running" && r != nil && r.StartedAt.Unix() == ts.StartedAt.Unix() {
				return ts.Restarts - min(ts.Restarts, uint64(max(st.RestartCount, 0)))
			}
		}
	}
	return 0
}

// report patches the pod's status to what it should be, if it is not: a
// strategic merge patch of the difference, as the kubelet's status manager
// sends, so that conditions and metadata of others stay as they are.
func (c *Controller) report(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error {
	if equality.Semantic.DeepEqual(pod.Status, status) {
		return nil
	}
	patch, err := statusPatch(pod, status, c.whereabouts(pod, &status))
	if err != nil {
		return fmt.Errorf("make a status patch for pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	if patch == nil {
		return nil
	}
	_, err = c.Kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) && c.pod(pod.UID) == nil {
		return nil // gone; its deletion is on the way to us
	}
	if err != nil {
		return fmt.Errorf("patch the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	c.tellContainers(pod, &status)
	return nil
}

// whereabouts are the annotations that tell kubectl describe where in Nomad the
// pod is. They go with the patch that tells that it runs, and cost nothing.
func (c *Controller) whereabouts(pod *corev1.Pod, status *corev1.PodStatus) map[string]string {
	id := translate.AllocID(status)
	if id == "" || pod.Annotations[translate.AnnotationAllocation] == id {
		return nil
	}
	out := map[string]string{
		translate.AnnotationAllocation: id,
		translate.AnnotationJob:        translate.JobID(c.Cluster, pod.UID),
		translate.AnnotationUI:         strings.TrimSuffix(c.Nomad.Address(), "/") + "/ui/allocations/" + id,
	}
	if entry, ok := c.cache.Get(pod.UID); ok {
		if alloc := primary(pod, entry); alloc != nil && alloc.ID == id {
			out[translate.AnnotationClient] = alloc.NodeName
		}
	}
	return out
}

func statusPatch(pod *corev1.Pod, status corev1.PodStatus, annotations map[string]string) ([]byte, error) {
	// The UID makes sure that a later pod of the same name is not meant.
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID, Annotations: annotations}, Status: status})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
}

// fail makes the pod's phase Failed for good; alloc is nil when the pod has none.
func (c *Controller) fail(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, reason, message string) error {
	return c.report(ctx, pod, translate.Failed(pod, alloc, reason, truncate(message, 2000), c.facts(pod, alloc, "", nil)))
}
