package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const storageClass = "nomad-host-volume"

// storage is a claim of the StorageClass.
func storage(name, size string) *corev1.PersistentVolumeClaim {
	class := storageClass
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
	}}
}

func claim(t *testing.T, ns string, c *corev1.PersistentVolumeClaim) {
	t.Helper()
	if _, err := kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// mounting mounts the claim at /data.
func mounting(claim string, change ...func(*corev1.VolumeMount)) option {
	return func(p *corev1.Pod) {
		m := corev1.VolumeMount{Name: "data", MountPath: "/data"}
		for _, f := range change {
			f(&m)
		}
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, m)
	}
}

// hostVolumeOf is the Nomad host volume of a claim.
func hostVolumeOf(t *testing.T, ns, claim string) *api.HostVolume {
	t.Helper()
	c, err := kube.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), claim, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := nomad.HostVolumes().List(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if v.Name == c.Spec.VolumeName {
			vol, _, err := nomad.HostVolumes().Get(v.ID, nil)
			if err != nil {
				t.Fatal(err)
			}
			return vol
		}
	}
	t.Fatalf("Nomad has no host volume %q of claim %s", c.Spec.VolumeName, claim)
	return nil
}

// A StatefulSet's pods find their data again; the volumes go with their claims.
func TestStatefulSetClaims(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const script = `ls /data; echo "$HOSTNAME $(cat /data/ran 2>/dev/null)"; echo x >>/data/ran; [ -e /sub/there ] && echo sub; touch /sub/there; sleep 3600`
	tmpl := template("db", script, mounting("ignored"), func(p *corev1.Pod) {
		p.Spec.Volumes = nil // the StatefulSet's
		user := int64(1000)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &user}
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/sub", SubPath: "a/b"})
	})
	replicas := int32(2)
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, Selector: selector("db"), Template: tmpl, PodManagementPolicy: appsv1.ParallelPodManagement,
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{*storage("data", "1Gi")},
	}}
	begin := time.Now()
	if _, err := kube.AppsV1().StatefulSets(ns).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "-n", ns, "rollout", "status", "statefulset/db", "--timeout=90s")
	t.Logf("two pods with new volumes are ready after %.1f s", time.Since(begin).Seconds())
	says := func(name, want string) {
		t.Helper()
		eventually(t, 20*time.Second, "the log of "+name, func() error {
			if out := kubectl(t, "-n", ns, "logs", name); !strings.Contains(out, want) {
				return fmt.Errorf("%q, want %q", out, want)
			}
			return nil
		})
	}
	says("db-0", "db-0 \n")
	says("db-1", "db-1 \n")
	vol := hostVolumeOf(t, ns, "data-db-0")
	if info, err := os.Stat(vol.HostPath); err != nil || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("the volume's directory: %v, %v", info, err)
	}

	begin = time.Now()
	kubectl(t, "-n", ns, "delete", "pod", "db-0", "db-1", "--wait=true", "--timeout=60s")
	kubectl(t, "-n", ns, "rollout", "status", "statefulset/db", "--timeout=90s")
	t.Logf("deleted, they are ready again after %.1f s", time.Since(begin).Seconds())
	says("db-0", "ran\ndb-0 x\nsub\n")
	says("db-1", "ran\ndb-1 x\nsub\n")

	kubectl(t, "-n", ns, "delete", "statefulset", "db", "--wait=true", "--timeout=60s", "--cascade=foreground")
	kubectl(t, "-n", ns, "delete", "pvc", "data-db-0", "--wait=true", "--timeout=60s")
	eventually(t, 30*time.Second, "the volume is gone", func() error {
		if _, _, err := nomad.HostVolumes().Get(vol.ID, nil); err == nil {
			return fmt.Errorf("Nomad still has it")
		}
		if _, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), vol.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the PersistentVolume: %v", err)
		}
		return nil
	})
	if _, err := os.Stat(vol.HostPath); !os.IsNotExist(err) {
		t.Errorf("its directory: %v", err)
	}
	hostVolumeOf(t, ns, "data-db-1") // of another claim
}

// A pod that is bound to the virtual node waits for its claim to be bound, says so as
// the kubelet does, and starts then. Here nobody provisions, and an administrator
// makes the volume of a directory that Nomad is told of by hand.
func TestClaimBoundLater(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	none := ""
	c := storage("data", "1Gi")
	c.Spec.StorageClassName = &none
	claim(t, ns, c)
	p := create(t, kube, ns, pod("p", "cat /data/file; touch /data/x || echo read-only; sleep 3600", mounting("data", func(m *corev1.VolumeMount) { m.ReadOnly = true }),
		func(p *corev1.Pod) { p.Spec.NodeName = cluster.Config().VirtualNodes[0].Name }))
	eventually(t, 30*time.Second, "the event", func() error {
		return happened(t, p, "FailedMount", "PVC is not bound")
	})
	p = await(t, kube, p, 10*time.Second, "waiting", func(p *corev1.Pod) bool {
		s := status(p, "c").State.Waiting
		return s != nil && s.Reason == "ContainerCreating" && strings.Contains(s.Message, "PVC is not bound")
	})
	if list, _, err := nomad.Jobs().Info(jobID(cluster, p), nil); err == nil {
		t.Errorf("it has job %s", *list.ID)
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	clients, _, err := nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := nomad.HostVolumes().Register(&api.HostVolumeRegisterRequest{Volume: &api.HostVolume{Name: ns, NodeID: clients[0].ID, HostPath: dir}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _, _ = nomad.HostVolumes().Delete(&api.HostVolumeDeleteRequest{ID: made.Volume.ID}, nil) }()
	volume(t, ns, "data", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: translate.DriverHostVolume, VolumeHandle: ns}})
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	eventually(t, 20*time.Second, "the log", func() error {
		if out := logs(t, kube, p, &corev1.PodLogOptions{}); !strings.Contains(out, "from before\n") || !strings.Contains(out, "read-only") {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	kubectl(t, "-n", ns, "delete", "pod", "p", "--wait=true", "--timeout=60s")
}

// volume is one made by hand for a claim.
func volume(t *testing.T, ns, claim string, source corev1.PersistentVolumeSource) {
	t.Helper()
	_, err := kube.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: ns, Name: claim}, PersistentVolumeSource: source,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kube.CoreV1().PersistentVolumes().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
}

// happened looks for an event of the pod.
func happened(t *testing.T, p *corev1.Pod, reason, text string) error {
	t.Helper()
	events, err := kube.CoreV1().Events(p.Namespace).List(t.Context(), metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("involvedObject.name", p.Name).String()})
	if err != nil {
		return err
	}
	var seen []string
	for _, e := range events.Items {
		if e.Reason == reason && strings.Contains(e.Message, text) {
			return nil
		}
		seen = append(seen, e.Reason+": "+e.Message)
	}
	return fmt.Errorf("events: %q", seen)
}

// What Nomad has no way to is refused with the reason and what would do, and so is a
// claim that asks for more than a host volume is.
func TestClaimsRefused(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	none := ""
	c := storage("other", "1Gi")
	c.Spec.StorageClassName = &none
	claim(t, ns, c)
	volume(t, ns, "other", corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "ebs.csi.example.com", VolumeHandle: "vol-1"}})
	p := create(t, kube, ns, pod("p", idle, mounting("other")))
	p = await(t, kube, p, 60*time.Second, "failed", phase(corev1.PodFailed))
	if p.Status.Reason != "UnsupportedByNomad" || !strings.Contains(p.Status.Message, "ebs.csi.example.com") || !strings.Contains(p.Status.Message, storageClass) {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}

	many := storage("many", "1Gi")
	many.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	claim(t, ns, many)
	create(t, kube, ns, pod("many", idle, mounting("many")))
	eventually(t, 30*time.Second, "the claim's event", func() error {
		out := kubectl(t, "-n", ns, "describe", "pvc", "many")
		if !strings.Contains(out, "ReadWriteMany: a host volume lies on one Nomad client") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// A VM's claim is a disk that is there again when the pod is made anew. Nobody else
// has it in between.
func TestVirtualMachineClaim(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	claim(t, ns, storage("data", "64Mi"))
	agent := func(p *corev1.Pod) {
		p.Annotations[translate.AnnotationVMReady] = "agent"
		p.Spec.Containers[0].ReadinessProbe = nil
	}
	vm := func(name string) *corev1.Pod { return create(t, kube, ns, vmPod(name, agent, mounting("data"))) }
	run := func(p *corev1.Pod, script, want string) {
		t.Helper()
		if out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", script); out != want || code != 0 {
			t.Errorf("%s: code %d, %q%s, want %q", script, code, out, errOut, want)
		}
	}
	first := await(t, kube, vm("first"), 150*time.Second, "ready", ready)
	run(first, "echo kept >/data/file; sync; df -m /data | awk 'END{print ($2>40 && $2<=64)}'; cat /sys/block/vd*/serial | grep -c data", "1\n1\n")
	file := filepath.Join(hostVolumeOf(t, ns, "data").HostPath, "disk.img")
	if info, err := os.Stat(file); err != nil || info.Size() != 64<<20 {
		t.Errorf("the disk: %v, %v", info, err)
	}
	// qemu's own lock is behind what nomad-kubelet sees to.
	if _, err := exec.LookPath("qemu-io"); err == nil {
		// ext4 leaves these bytes alone.
		if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", file).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("the disk is not locked: %v, %s", err, out)
		}
	}

	second := vm("second")
	other := create(t, kube, ns, pod("other", idle, mounting("data")))
	for _, p := range []*corev1.Pod{second, other} {
		eventually(t, 30*time.Second, "the event", func() error {
			return happened(t, p, "FailedMount", "is a VM's disk and in use by pod "+ns+"/first")
		})
	}
	kubectl(t, "-n", ns, "delete", "pod", "other", "first", "--wait=true", "--timeout=90s")
	second = await(t, kube, second, 150*time.Second, "ready", ready)
	run(second, "cat /data/file", "kept\n")
	kubectl(t, "-n", ns, "delete", "pod", "second", "--wait=true", "--timeout=90s")

	// A container may have put anything in the disk's place.
	evil := create(t, kube, ns, pod("evil", "mv /data/disk.img /data/old && ln -s /etc/passwd /data/disk.img", mounting("data")))
	await(t, kube, evil, 60*time.Second, "succeeded", phase(corev1.PodSucceeded))
	third := vm("third")
	eventually(t, 60*time.Second, "the event", func() error {
		return happened(t, third, "FailedMount", "is no file")
	})
	kubectl(t, "-n", ns, "delete", "pod", "third", "evil", "--wait=true", "--timeout=90s")
}
