package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// debug adds an ephemeral container to a pod that runs, as kubectl debug does.
func debug(t *testing.T, k kubernetes.Interface, p *corev1.Pod, name, target, script string, change func(*corev1.EphemeralContainer)) {
	t.Helper()
	ec := corev1.EphemeralContainer{TargetContainerName: target}
	ec.Name, ec.Image, ec.Command = name, image, []string{"sh", "-c", script}
	if change != nil {
		change(&ec)
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{ec}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.CoreV1().Pods(p.Namespace).Patch(t.Context(), p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers"); err != nil {
		t.Fatal(err)
	}
}

func ephemeralState(p *corev1.Pod, name string) corev1.ContainerState {
	return translate.EphemeralStatus(p, name).State
}

func TestEphemeralContainers(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"password": "hunter2"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := create(t, kube, ns, pod("web", `echo index > /data/index.html; exec httpd -f -p 8080 -h /data`, restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec"}}},
		}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "sec", MountPath: "/sec"}}
		p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"alias.example"}}}
	}))
	p = await(t, kube, p, 60*time.Second, "ready", ready)

	debug(t, kube, p, "debug", "c", `echo "word: $PASSWORD"; echo bye > /dev/termination-log; until [ -e /theirs/end ]; do sleep 0.1; done; exit 7`, func(ec *corev1.EphemeralContainer) {
		ec.Env = []corev1.EnvVar{
			{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}, Key: "password"}}},
			{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
		}
		ec.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/theirs"}, {Name: "sec", MountPath: "/sec"}}
	})
	p = await(t, kube, p, 60*time.Second, "debugged", func(p *corev1.Pod) bool { return ephemeralState(p, "debug").Running != nil })
	if !ready(p) || p.Status.Phase != corev1.PodRunning {
		t.Errorf("the pod is no longer ready\n%s", describe(p))
	}
	for script, want := range map[string]string{
		`echo marco`:                                    "marco\n",
		`wget -q -O - http://127.0.0.1:8080/`:           "index\n",
		`ps | grep -c "[h]ttpd -f"`:                     "1\n",
		`cat /theirs/index.html; touch /theirs/x`:       "index\n",
		`cat /sec/password`:                             "hunter2",
		`touch /sec/x 2>/dev/null || echo no`:           "no\n",
		`printf %s "$POD_IP"`:                           p.Status.PodIP,
		`grep -c "^192.0.2.7.alias.example" /etc/hosts`: "1\n",
		`hostname`:                         "web\n",
		`ip -4 addr | grep -c "$POD_IP/"`:  "1\n",
		`cat /proc/1/root/data/index.html`: "index\n",
		`diff /etc/resolv.conf /proc/1/root/etc/resolv.conf && echo same`: "same\n",
	} {
		if out, errOut, code := execIn(t, p, "debug", nil, "sh", "-c", script); out != want || errOut != "" {
			t.Errorf("%s: got %q, want %q (code %d, %s)", script, out, want, code, errOut)
		}
	}
	if out, _, _ := execIn(t, p, "c", nil, "sh", "-c", "ls /data"); out != "index.html\nx\n" {
		t.Errorf("the target sees %q in the volume", out)
	}
	eventually(t, 10*time.Second, "the log", func() error {
		if got := logs(t, kube, p, &corev1.PodLogOptions{Container: "debug"}); got != "word: hunter2\n" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	id := translate.CompanionID(cluster.ClusterID(), p.UID, "debug")
	job, _, err := nomad.Jobs().Info(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(deep(t, job), "hunter2") {
		t.Error("the job holds the secret's value")
	}

	// It ends by itself, and is told so for good.
	execIn(t, p, "c", nil, "touch", "/data/end")
	p = await(t, kube, p, 30*time.Second, "told of its end", func(p *corev1.Pod) bool { return ephemeralState(p, "debug").Terminated != nil })
	if end := ephemeralState(p, "debug").Terminated; end.ExitCode != 7 || end.Reason != "Error" || end.Message != "bye\n" {
		t.Errorf("its end is told as %+v", end)
	}
	if got := logs(t, kube, p, &corev1.PodLogOptions{Container: "debug"}); got != "word: hunter2\n" {
		t.Errorf("the log of what has ended is %q", got)
	}
	if st := status(p, "c"); !ready(p) || st.RestartCount != 0 || st.State.Running == nil {
		t.Errorf("the target was disturbed\n%s", describe(p))
	}

	// One that runs when the pod goes, goes with it.
	asked := time.Now()
	debug(t, kube, p, "second", "", "while true; do echo polo; sleep 2; done", func(ec *corev1.EphemeralContainer) { ec.Stdin, ec.TTY = true, true })
	await(t, kube, p, 60*time.Second, "debugged again", func(p *corev1.Pod) bool { return ephemeralState(p, "second").Running != nil })
	t.Logf("running %d ms after it was asked for", time.Since(asked).Milliseconds())
	if out, _, _ := execIn(t, p, "second", nil, "echo", "marco"); out != "marco\n" {
		t.Errorf("exec in a container with a terminal: %q", out)
	}
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 30*time.Second)
	for _, id := range []string{jobID(cluster, p), id, translate.CompanionID(cluster.ClusterID(), p.UID, "second")} {
		awaitNoJob(t, nomad, id, 20*time.Second)
	}
}

// What cannot run is told of in the container's status, and the pod goes on.
func TestEphemeralContainersThatCannotRun(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", "exec sleep 3600", restart(corev1.RestartPolicyAlways)))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	debug(t, kube, p, "root", "", "true", func(ec *corev1.EphemeralContainer) {
		ec.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
	})
	debug(t, kube, p, "none", "", "true", func(ec *corev1.EphemeralContainer) { ec.Image = "registry.invalid/none:1" })
	debug(t, kube, p, "waits", "", "exit 3", func(ec *corev1.EphemeralContainer) {
		ec.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}}}}
	})
	p = await(t, kube, p, 90*time.Second, "told of all three", func(p *corev1.Pod) bool {
		root, none, waits := ephemeralState(p, "root").Terminated, ephemeralState(p, "none").Waiting, ephemeralState(p, "waits").Waiting
		return root != nil && root.Reason == "UnsupportedByNomad" && strings.Contains(root.Message, "hostAccess.privileged") &&
			none != nil && none.Reason == "ErrImagePull" && waits != nil && waits.Reason == "CreateContainerConfigError"
	})
	if !ready(p) {
		t.Errorf("the pod is no longer ready\n%s", describe(p))
	}
	if msg := eventOf(t, kube, p, "UnsupportedByNomad"); !strings.Contains(msg, "spec.ephemeralContainers[root]") {
		t.Errorf("event %q", msg)
	}
	if _, err := kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, kube, p, 60*time.Second, "run once its ConfigMap is there", func(p *corev1.Pod) bool {
		end := ephemeralState(p, "waits").Terminated
		return end != nil && end.ExitCode == 3
	})
	// Tried again after the kubelet's back-off.
	await(t, kube, p, 60*time.Second, "tried again", func(p *corev1.Pod) bool {
		w := ephemeralState(p, "none").Waiting
		return w != nil && w.Reason == "ImagePullBackOff"
	})
}

// A kill -9 while an ephemeral container is registered, runs, and ends, runs
// none twice and forgets none. The count lies in the pod's volume.
func TestEphemeralContainersAndKill(t *testing.T) {
	h := newHybrid(t, sharedPorts+400, func(o *devcluster.Options) { o.NoDocker, o.MockRuntime = false, false })
	ns := namespace(t, h.kube)
	data := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}
	p := create(t, h.kube, ns, pod("p", "exec sleep 3600", restart(corev1.RestartPolicyAlways), data))
	p = await(t, h.kube, p, 60*time.Second, "ready", ready)
	mount := func(ec *corev1.EphemeralContainer) {
		ec.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}
	restartKubelet := func() {
		h.kill(t, devcluster.NomadKubelet)
		h.start(t, devcluster.NomadKubelet)
	}
	// At once after it was asked for.
	debug(t, h.kube, p, "first", "", "echo run >> /data/first; until [ -e /data/end ]; do sleep 0.1; done; exit 5", mount)
	restartKubelet()
	p = await(t, h.kube, p, 60*time.Second, "running", func(p *corev1.Pod) bool { return ephemeralState(p, "first").Running != nil })
	// While it runs; it ends meanwhile.
	h.kill(t, devcluster.NomadKubelet)
	id := translate.CompanionID(h.ClusterID(), p.UID, "first")
	debug(t, h.kube, p, "second", "", "echo run >> /data/second; touch /data/end; exit 6", mount)
	h.start(t, devcluster.NomadKubelet)
	told := func(name string, code int32) {
		t.Helper()
		p = await(t, h.kube, p, 60*time.Second, name+" told as ended", func(p *corev1.Pod) bool {
			end := ephemeralState(p, name).Terminated
			return end != nil && end.ExitCode == code
		})
	}
	told("second", 6)
	told("first", 5)
	// After it was told, even if Nomad forgets the job.
	if _, _, err := h.nomad.Jobs().Deregister(id, true, nil); err != nil {
		t.Fatal(err)
	}
	restartKubelet()
	debug(t, h.kube, p, "third", "", "cat /data/first /data/second", mount)
	told("third", 0)
	eventually(t, 10*time.Second, "each ran once", func() error {
		if got := logs(t, h.kube, p, &corev1.PodLogOptions{Container: "third"}); got != "run\nrun\n" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	remove(t, h.kube, p, nil)
	awaitGone(t, h.kube, p, 30*time.Second)
	for _, id := range []string{jobID(h.Cluster, p), id, translate.CompanionID(h.ClusterID(), p.UID, "third")} {
		awaitNoJob(t, h.nomad, id, 20*time.Second)
	}
}
