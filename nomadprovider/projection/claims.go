package projection

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// setStorage takes in a claim or volume, or that it is gone; changed is false for
// other objects, and for what matters to no pod.
func (obj *object) setStorage(x any) (changed bool) {
	c, _ := x.(*corev1.PersistentVolumeClaim)
	v, _ := x.(*corev1.PersistentVolume)
	if c != nil && obj.claim != nil {
		changed = !equality.Semantic.DeepEqual(c.Spec, obj.claim.Spec) || c.Status.Phase != obj.claim.Status.Phase ||
			c.UID != obj.claim.UID || (c.DeletionTimestamp == nil) != (obj.claim.DeletionTimestamp == nil)
	} else {
		changed = c != obj.claim
	}
	if v != nil && obj.volume != nil {
		changed = changed || !equality.Semantic.DeepEqual(v.Spec, obj.volume.Spec)
	} else {
		changed = changed || v != obj.volume
	}
	obj.claim, obj.volume = c, v
	return changed
}

// Claims are those that the pod names, as far as they exist, with what they are
// bound to. Paths are left to the caller.
func (o *Objects) Claims(pod *corev1.Pod) map[string]translate.Claim {
	out := map[string]translate.Claim{}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name := translate.ClaimName(pod, v)
		if name == "" {
			continue
		}
		obj := o.watched[ref{claim, pod.Namespace, name}]
		if obj == nil || obj.claim == nil {
			continue
		}
		c := translate.Claim{AccessModes: obj.claim.Spec.AccessModes}
		var pv *corev1.PersistentVolume
		if obj := o.watched[ref{volume, "", obj.claim.Spec.VolumeName}]; obj != nil {
			pv = obj.volume
		}
		if c.Pending = pending(pod, v, obj.claim, pv); c.Pending == "" {
			c.Volume = &pv.Spec
		}
		out[name] = c
	}
	return out
}

// pending says why a claim cannot be used yet, as the kubelet does
// (pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go).
func pending(pod *corev1.Pod, v *corev1.Volume, c *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) string {
	switch {
	case v.Ephemeral != nil && !metav1.IsControlledBy(c, pod):
		return "PVC is not owned by pod"
	case c.DeletionTimestamp != nil:
		return "PVC is being deleted"
	case c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName == "":
		return "PVC is not bound"
	case pv == nil:
		return "persistentvolume \"" + c.Spec.VolumeName + "\" not found"
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != c.UID:
		return "PV " + pv.Name + " is bound to another claim"
	}
	return ""
}
