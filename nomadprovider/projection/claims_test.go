package projection

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func claimed(uid string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
		{Name: "own", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
	}
	return pod
}

func bound(name, uid, to string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid)}}
	c.Spec.VolumeName = to
	if to != "" {
		c.Status.Phase = corev1.ClaimBound
	}
	return c
}

func pv(name, claim string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: name}
	v.Spec.ClaimRef = &corev1.ObjectReference{UID: types.UID(claim)}
	return v
}

// A claim is followed to the volume that it is bound to, and said to be pending in
// the kubelet's words until then.
func TestClaims(t *testing.T) {
	r := newRoom(t, bound("u-own", "2", ""))
	pod := claimed("u")
	pend := func(want string) {
		t.Helper()
		r.eventually("pending: "+want, func() bool {
			r.ready(pod)
			c, ok := r.objects.Claims(pod)["data"]
			return ok && c.Pending == want && (c.Volume != nil) == (want == "")
		})
	}
	r.ready(pod)
	claims := r.objects.Claims(pod)
	if _, ok := claims["data"]; ok || claims["u-own"].Pending != "PVC is not owned by pod" {
		t.Errorf("%+v", claims)
	}
	core := r.kube.CoreV1()
	update := func(c *corev1.PersistentVolumeClaim) {
		t.Helper()
		if _, err := core.PersistentVolumeClaims("ns").Update(background, c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		r.awaits("u")
	}
	if _, err := core.PersistentVolumeClaims("ns").Create(background, bound("data", "1", ""), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.awaits("u")
	pend("PVC is not bound")
	update(bound("data", "1", "v1"))
	pend(`persistentvolume "v1" not found`)
	if _, err := core.PersistentVolumes().Create(background, pv("v1", "other"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pend("PV v1 is bound to another claim")
	if _, err := core.PersistentVolumes().Update(background, pv("v1", "1"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pend("")
	if c := r.objects.Claims(pod)["data"]; c.Volume.CSI.VolumeHandle != "v1" {
		t.Errorf("%+v", c)
	}
	going := bound("data", "1", "v1")
	going.DeletionTimestamp = new(metav1.Now())
	update(going)
	pend("PVC is being deleted")
	// What is bound anew leaves no watch behind.
	update(bound("data", "1", "v2"))
	pend(`persistentvolume "v2" not found`)
	r.objects.Release("u")
	r.eventually("watches go on", func() bool { return r.kube.watches.Load() == 0 })
}
