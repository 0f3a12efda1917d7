package pods

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// mounted is a pod in the view with the claim; a VM if vm is set.
func (r *room) mounted(name string, vm, readOnly bool) *corev1.Pod {
	return r.pod(func(p *corev1.Pod) {
		p.Name, p.UID = name, types.UID(name)
		if class := "nomad-vm"; vm {
			p.Spec.RuntimeClassName = &class
		}
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: readOnly},
		}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data", SubPath: "x"}}
	})
}

// A VM's claim is for one pod, whichever comes first, unless both only read it.
func TestClaimsAreHeld(t *testing.T) {
	for _, tc := range []struct {
		firstVM, firstReads, secondVM, secondReads, waits bool
	}{
		{true, false, true, false, true},
		{true, false, false, false, true},
		{false, false, true, false, true},
		{true, false, true, true, true},
		{true, true, true, true, false},
		{false, false, false, false, false},
	} {
		r := newRoom(t)
		first, second := r.mounted("first", tc.firstVM, tc.firstReads), r.mounted("second", tc.secondVM, tc.secondReads)
		if by := r.holdClaims(first); by != "" {
			t.Errorf("%+v: the first waits: %s", tc, by)
		}
		by := r.holdClaims(second)
		if waits := by != ""; waits != tc.waits || waits && !strings.Contains(by, "claim ns/data is a VM's disk and in use by pod ns/first") {
			t.Errorf("%+v: %q", tc, by)
		}
		if !tc.waits {
			continue
		}
		r.letGo(first.UID)
		if n := r.queue.Len(); n != 1 {
			t.Errorf("%+v: %d pods are looked at again", tc, n)
		}
		if by := r.holdClaims(second); by != "" {
			t.Errorf("%+v: it still waits: %s", tc, by)
		}
	}
}

// A pod waits for its claim in the open, and is looked at again when a client has
// what it needs.
func TestClaimIsAwaited(t *testing.T) {
	r := newRoom(t)
	r.volumes = map[string][]string{}
	r.restart()
	pod := r.mounted("p", false, false)
	step := func() {
		t.Helper()
		r.awaitRead(pod)
		if _, err := r.start(ctx, r.read(pod)); err != nil {
			t.Fatal(err)
		}
	}
	step()
	r.event(`Warning FailedMount persistentvolumeclaim "data" not found`)
	if w := r.read(pod).Status.ContainerStatuses[0].State.Waiting; w.Reason != reasonCreating || !strings.Contains(w.Message, "not found") {
		t.Errorf("%+v", w)
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "host-volume.nomad-kubelet.io", VolumeHandle: "pv"}
	pv.Spec.ClaimRef = &corev1.ObjectReference{UID: "c"}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "ns", UID: "c"}}
	claim.Spec.VolumeName, claim.Status.Phase = "pv", corev1.ClaimBound
	if _, err := r.kube.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.kube.CoreV1().PersistentVolumeClaims("ns").Create(ctx, claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("claim and volume are read", func() bool {
		return r.objects.Watch(r.life, pod) && r.objects.Claims(pod)["data"].Volume != nil
	})
	step()
	r.event("Warning FailedMount no Nomad client of virtual node n has the host volume")
	for r.queue.Len() > 0 {
		r.next("what is left of the reading")
	}
	r.volumes["pv"] = []string{"/opt/nomad/1"}
	r.ClientsChanged()
	if n := r.queue.Len(); n != 1 {
		t.Errorf("%d pods are looked at again", n)
	}
	r.nomad.take()
	step()
	if got := strings.Join(r.nomad.take(), "\n"); !strings.Contains(got, "PUT jobs") {
		t.Errorf("it was not registered: %s", got)
	}
}
