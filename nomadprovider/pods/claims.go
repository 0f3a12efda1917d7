package pods

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// A claim that a VM has is its disk, which nobody else may have at the same time:
// two guests would destroy its file system, and a container could put another file
// into its place, which qemu, root on the client, would open. Kubernetes' access
// modes do not say so (ReadWriteOnce is of a node), and Nomad's forget a pod that
// is ending. So a pod waits while another holds such a claim. qemu's own lock on the
// file is behind that.

// hold is what a pod's job has of claims.
type hold struct {
	vm     bool
	claims map[string]access // by namespace/name
	pod    string            // namespace/name
}

// access says how a claim is used.
type access struct{ readOnly bool }

func (c *Controller) claimsOf(pod *corev1.Pod) hold {
	h := hold{vm: c.driver(pod) == driverQemu, claims: map[string]access{}, pod: pod.Namespace + "/" + pod.Name}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if name := translate.ClaimName(pod, v); name != "" {
			key := pod.Namespace + "/" + name
			was, again := h.claims[key]
			readOnly := v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
			h.claims[key] = access{readOnly && (was.readOnly || !again)}
		}
	}
	return h
}

// holdClaims takes the pod's claims for its job, until [Controller.letGo]. It
// returns why the pod has to wait, empty when it has them.
func (c *Controller) holdClaims(pod *corev1.Pod) string {
	own := c.claimsOf(pod)
	if len(own.claims) == 0 {
		return ""
	}
	// Those of jobs that a former self registered are not remembered yet.
	for _, inf := range c.informers {
		list, _ := inf.GetIndexer().ByIndex(cache.NamespaceIndex, pod.Namespace) // fails only without the index
		for _, x := range list {
			other := x.(*corev1.Pod)
			if entry, known := c.cache.Get(other.UID); known && other.UID != pod.UID && !over(other, entry) {
				c.takeClaims(other)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid, other := range c.holds {
		if uid == pod.UID || !own.vm && !other.vm {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(own.claims)) {
			if theirs, both := other.claims[name]; both && !(theirs.readOnly && own.claims[name].readOnly) {
				c.waiting[pod.UID] = struct{}{}
				return fmt.Sprintf("claim %s is a VM's disk and in use by pod %s", name, other.pod)
			}
		}
	}
	c.holds[pod.UID] = own
	delete(c.waiting, pod.UID)
	return ""
}

// over says that the pod ends and nothing of it runs.
func over(pod *corev1.Pod, entry allocs.Entry) bool {
	return (finished(pod) || pod.DeletionTimestamp != nil) && len(remaining(entry)) == 0
}

func (c *Controller) takeClaims(pod *corev1.Pod) {
	h := c.claimsOf(pod)
	if len(h.claims) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holds[pod.UID] = h
}

// letGo is for a pod of which nothing runs any more: others may have its claims.
func (c *Controller) letGo(uid types.UID) {
	c.mu.Lock()
	h, held := c.holds[uid]
	delete(c.holds, uid)
	delete(c.waiting, uid)
	c.mu.Unlock()
	if held && len(h.claims) > 0 {
		c.ClientsChanged()
	}
}

// await has the pod looked at again by [Controller.ClientsChanged].
func (c *Controller) await(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[uid] = struct{}{}
}

// ClientsChanged looks again at the pods that wait for a Nomad client to have their
// host volume.
func (c *Controller) ClientsChanged() {
	c.mu.Lock()
	uids := slices.Collect(maps.Keys(c.waiting))
	clear(c.waiting)
	c.mu.Unlock()
	for _, uid := range uids {
		c.queue.Add(uid)
	}
}
