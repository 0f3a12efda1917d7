package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// guestObjects are what the guests' pods refer to.
func guestObjects(t *testing.T, ns string) {
	t.Helper()
	if _, err := kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"greeting": "hello", "gone-later": "x"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"key": "s3cret 'quoted' \"$(x)\"\nsecond"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// guestPod gives its guest an environment and volumes of every kind.
func guestPod(p *corev1.Pod) {
	p.Labels = map[string]string{"color": "blue"}
	p.Annotations[translate.AnnotationVMReady] = "agent"
	mode := int32(0o400)
	p.Spec.Volumes = []corev1.Volume{
		{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
		{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec", DefaultMode: &mode}}},
		{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "a/labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		}}}},
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: new(resource.MustParse("64Mi"))}}},
		{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("8Mi"))}}},
	}
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "conf", MountPath: "/etc/conf"}, {Name: "conf", MountPath: "/etc/one file", SubPath: "greeting"},
		{Name: "sec", MountPath: "/sec"}, {Name: "all", MountPath: "/all"},
		{Name: "data", MountPath: "/data", SubPath: "sub"}, {Name: "mem", MountPath: "/mem"},
	}
	from := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	c.Env = []corev1.EnvVar{
		{Name: "KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}, Key: "key"}}},
		{Name: "POD_IP", ValueFrom: from("status.podIP")}, {Name: "HOST_IP", ValueFrom: from("status.hostIP")},
		{Name: "odd-name.1", Value: "at $(POD_IP)"},
	}
	c.EnvFrom = []corev1.EnvFromSource{{Prefix: "C_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
	c.ReadinessProbe.Exec.Command = []string{"test", "-e", "/etc/conf/greeting"}
}

// A guest has the environment and the volumes of its container, what changes comes
// to it while it runs, and what it wrote outlives it.
func TestVirtualMachineVolumes(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	guestObjects(t, ns)
	p := create(t, kube, ns, vmPod("vm", guestPod, restart(corev1.RestartPolicyAlways)))
	t.Cleanup(func() {
		if t.Failed() {
			data, _ := kube.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(context.Background())
			t.Logf("console: %q", data[max(0, len(data)-3000):])
		}
	})
	p = await(t, kube, p, 120*time.Second, "ready", ready)
	run := func(script string) string {
		t.Helper()
		out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", script)
		if code != 0 {
			t.Errorf("%s: code %d, %s%s", script, code, out, errOut)
		}
		return out
	}
	same := func(script, want string) {
		t.Helper()
		if got := run(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	secret := "s3cret 'quoted' \"$(x)\"\nsecond"
	same(`printf %s "$KEY"`, secret)
	same(`printf %s "$C_greeting $POD_IP $HOST_IP"`, "hello "+p.Status.PodIP+" "+p.Status.HostIP)
	if out, _, _ := execIn(t, p, "c", nil, "env"); !strings.Contains(out, "odd-name.1=at "+p.Status.PodIP+"\n") {
		t.Errorf("environment %q", out)
	}
	same(`. /run/nomad-kubelet/env; printf %s "$KEY"`, secret)
	same("cat /etc/conf/greeting '/etc/one file' /sec/key; stat -Lc %a /sec/key; sed -n 1p /all/a/labels", "hellohello"+secret+"400\ncolor=\"blue\"\n")
	same("ls /etc/conf; ls /all; wc -c </all/token | awk '{print ($1>100)}'", "gone-later\ngreeting\na\ntoken\n1\n")
	same("touch /etc/conf/x 2>&1 || true", "touch: /etc/conf/x: Read-only file system\n")
	same("echo kept >/data/file; echo memory >/mem/file; df -m /data | awk 'END{print ($2>40 && $2<=64)}'; df -m /mem | awk 'END{print $2}'; sync", "1\n8\n")

	changed := time.Now()
	conf, err := kube.CoreV1().ConfigMaps(ns).Get(t.Context(), "conf", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	conf.Data = map[string]string{"greeting": "good bye", "new": "y"}
	if _, err := kube.CoreV1().ConfigMaps(ns).Update(t.Context(), conf, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the change in the guest", func() error {
		if got := run("cat /etc/conf/*; ls /etc/conf"); got != "good byeygreeting\nnew\n" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	t.Logf("a change came to the guest within %.1f s", time.Since(changed).Seconds())

	// An agent that does not answer gets a change when it does.
	_, _, _ = execIn(t, p, "c", nil, "sh", "-c", "(sleep 1; killall -STOP qemu-ga; sleep 40; killall -CONT qemu-ga) >/dev/null 2>&1 &")
	eventually(t, 30*time.Second, "the agent is silent", func() error {
		if _, _, code := execIn(t, p, "c", nil, "true"); code == 0 {
			return fmt.Errorf("it answers")
		}
		return nil
	})
	conf.Data["greeting"], conf.ResourceVersion = "late", ""
	if _, err := kube.CoreV1().ConfigMaps(ns).Update(t.Context(), conf, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 120*time.Second, "the late change in the guest", func() error {
		if got, _, _ := execIn(t, p, "c", nil, "cat", "/etc/conf/greeting"); got != "late" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})

	_, _, _ = execIn(t, p, "c", nil, "sh", "-c", "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
	p = await(t, kube, p, 60*time.Second, "restarted", func(p *corev1.Pod) bool { return status(p, "c").RestartCount == 1 })
	p = await(t, kube, p, 120*time.Second, "ready again", ready)
	same("cat /etc/conf/greeting /data/file; ls /mem", "latekept\n")

	job, _, err := nomad.Jobs().Info(jobID(cluster, p), nil)
	if err != nil || strings.Contains(deep(t, job), "s3cret") {
		t.Errorf("the job holds what is secret, or is not there: %v", err)
	}
	vars, _, err := nomad.Variables().PrefixList("nomad/jobs/"+jobID(cluster, p), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vars {
		if got, _, err := nomad.Variables().Read(v.Path, nil); err != nil || strings.Contains(deep(t, got), "czNjcmV0") || strings.Contains(deep(t, got), "s3cret") {
			t.Errorf("Variable %s holds what is secret, or cannot be read: %v", v.Path, err)
		}
	}
	if out := logs(t, kube, p, &corev1.PodLogOptions{}); strings.Contains(out, "s3cret") || strings.Contains(out, "nomad-kubelet:") {
		t.Errorf("the log: %q", out)
	}
}

// The container's command runs in the guest, writes to the log, and ends the VM
// with its own exit code.
func TestVirtualMachineCommand(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	guestObjects(t, ns)
	for _, tc := range []struct {
		code  int32
		phase corev1.PodPhase
	}{{0, corev1.PodSucceeded}, {3, corev1.PodFailed}, {6, corev1.PodFailed}} {
		p := create(t, kube, ns, vmPod(fmt.Sprintf("code-%d", tc.code), guestPod, restart(corev1.RestartPolicyNever), func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.WorkingDir, c.ReadinessProbe = "/work", nil
			c.Command = []string{"sh", "-c", `pwd; echo "$1 $C_greeting $2"; echo last words >/dev/termination-log; exit "$3"`, "sh"}
			c.Args = []string{"it's", "$(C_greeting) $$(x)", fmt.Sprint(tc.code)}
		}))
		p = await(t, kube, p, 150*time.Second, string(tc.phase), phase(tc.phase))
		st := status(p, "c")
		if e := st.State.Terminated; e == nil || e.ExitCode != tc.code || e.Message != "last words\n" || st.RestartCount != 0 {
			t.Errorf("code %d: %+v", tc.code, st)
		}
		// The guest's shell writes its prompt to the same console, between lines at times.
		out := logs(t, kube, p, &corev1.PodLogOptions{})
		if !strings.Contains(out, "/work\r\n") || !strings.Contains(out, "it's hello hello $(x)\r\n") || !strings.Contains(out, "demo-vm powers off") || strings.Contains(out, "nomad-kubelet:") {
			t.Errorf("code %d: the log: %q", tc.code, out[max(0, len(out)-500):])
		}
	}
	p := create(t, kube, ns, vmPod("again", restart(corev1.RestartPolicyOnFailure), func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.ReadinessProbe, c.Command = nil, []string{"sh", "-c", "[ -e /data/ran ] || { touch /data/ran; exit 2; }"}
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: new(resource.MustParse("16Mi"))}}}}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}))
	p = await(t, kube, p, 180*time.Second, "succeeded", phase(corev1.PodSucceeded))
	if st := status(p, "c"); st.RestartCount != 1 || st.LastTerminationState.Terminated == nil || st.LastTerminationState.Terminated.ExitCode != 2 {
		t.Errorf("%+v", st)
	}
}

// A VM may boot by UEFI.
func TestVirtualMachineUEFI(t *testing.T) {
	t.Parallel()
	firmware, err := os.ReadFile("/usr/share/OVMF/OVMF_CODE_4M.fd")
	if err != nil {
		t.Skip("package ovmf is not installed")
	}
	ns := namespace(t, kube)
	at := filepath.Join(devcluster.VMImageDir, ns+".fd")
	if err := os.WriteFile(at, firmware, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(at)
	p := create(t, kube, ns, vmPod("vm", func(p *corev1.Pod) {
		p.Annotations[translate.AnnotationVMFirmware] = at
		p.Spec.Containers[0].ReadinessProbe.Exec.Command = []string{"test", "-d", "/sys/firmware/efi"}
	}))
	await(t, kube, p, 180*time.Second, "ready, booted by UEFI", ready)
}
