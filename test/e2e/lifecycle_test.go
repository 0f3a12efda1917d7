package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// diary is a directory that containers write into and the test reads.
func diary(t *testing.T) (dir string, mount option) {
	t.Helper()
	if err := os.MkdirAll("/tmp/nke2e-allowed", 0o777); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp/nke2e-allowed", "diary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir, func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "diary", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}})
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: "diary", MountPath: "/diary"})
			}
		}
	}
}

func read(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(data)), " ")
}

// untilTold lives until SIGTERM, and writes that down.
func untilTold(name string) string {
	return fmt.Sprintf(`trap 'echo %s >> /diary/log; exit 0' TERM; while :; do sleep 0.1; done`, name)
}

// A pod's hooks run, its main container ends after its preStop hook, and its
// sidecars after that, the last one first.
func TestHooksAndOrderOfTheEnd(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	dir, mount := diary(t)
	always := corev1.ContainerRestartPolicyAlways
	sidecar := func(name string) corev1.Container {
		c := container(name, untilTold(name))
		c.RestartPolicy = &always
		return c
	}
	shell := func(script string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}}
	}
	p := create(t, kube, ns, pod("ordered", untilTold("main"), restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		grace := int64(20)
		p.Spec.TerminationGracePeriodSeconds = &grace
		p.Spec.InitContainers = []corev1.Container{sidecar("one"), sidecar("two")}
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{
			PostStart: shell("sleep 2; echo post >> /diary/log"), PreStop: shell("echo pre >> /diary/log; sleep 1"),
		}
	}, mount))
	p = await(t, kube, p, 40*time.Second, "ready", ready)
	if got := read(t, dir); got != "post" {
		t.Errorf("told as ready after %q: its postStart hook had not ended", got)
	}
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 30*time.Second)
	if got, want := read(t, dir), "post pre main two one"; got != want {
		t.Errorf("it ended in the order %q, want %q", got, want)
	}
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
}

// The next container starts when the postStart hook of the one before has ended.
func TestPostStartHoldsTheNext(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	dir, mount := diary(t)
	p := create(t, kube, ns, pod("in-turn", "sleep 600", func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "sleep 2; echo post >> /diary/log"}},
		}}
		p.Spec.Containers = append(p.Spec.Containers, container("next", "echo next >> /diary/log; sleep 600"))
	}, mount))
	await(t, kube, p, 60*time.Second, "ready", ready)
	if got := read(t, dir); got != "post next" {
		t.Errorf("it started in the order %q", got)
	}
}

// A preStop hook that does not end is cut off with the grace period.
func TestPreStopHookThatHangs(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("hangs", "trap '' TERM; while :; do sleep 0.1; done", func(p *corev1.Pod) {
		grace := int64(4)
		p.Spec.TerminationGracePeriodSeconds = &grace
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "600"}}}}
	}))
	p = await(t, kube, p, 40*time.Second, "ready", ready)
	begin := time.Now()
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 30*time.Second)
	if took := time.Since(begin); took < 4*time.Second || took > 10*time.Second {
		t.Errorf("it was gone after %s, with 4 s of grace", took.Round(time.Millisecond))
	}
}

// A failed postStart hook ends the container, which is started again.
func TestPostStartHookFails(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("post", "sleep 600", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}}
	}))
	await(t, kube, p, 60*time.Second, "restarted", func(p *corev1.Pod) bool { return status(p, "c").RestartCount >= 1 })
	eventOf(t, kube, p, "FailedPostStartHook")
}

// HTTP hooks reach from the pod's own network, also its neighbours.
func TestHTTPHook(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	server := create(t, kube, ns, pod("server", `mkdir /www && echo hi > /www/post && echo hi > /www/pre && exec httpd -f -vv -p 8080 -h /www`))
	server = await(t, kube, server, 40*time.Second, "ready", ready)
	get := func(path string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Host: server.Status.PodIP, Path: path, Port: intstr.FromInt32(8080)}}
	}
	p := create(t, kube, ns, pod("caller", "sleep 600", func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: get("/post"), PreStop: get("/pre")}
	}))
	p = await(t, kube, p, 40*time.Second, "ready", ready)
	heard := func(what string) {
		t.Helper()
		eventually(t, 15*time.Second, "the server heard "+what, func() error {
			if got := logs(t, kube, server, &corev1.PodLogOptions{}); !strings.Contains(got, what) {
				return fmt.Errorf("its log: %q", got)
			}
			return nil
		})
	}
	heard("url:/post")
	remove(t, kube, p, nil)
	heard("url:/pre")
}

// A pod's aliases are in the hosts file of the kubelet, and a volume may take its place.
func TestHostsFile(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	dir, mount := diary(t)
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte("192.0.2.9 mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := create(t, kube, ns, pod("hosts", "sleep 600", mount, func(p *corev1.Pod) {
		p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"foo", "bar"}}}
		own := container("own", "sleep 600")
		own.VolumeMounts = []corev1.VolumeMount{{Name: "diary", MountPath: "/etc/hosts", SubPath: "hosts"}}
		p.Spec.Containers = append(p.Spec.Containers, own)
	}))
	p = await(t, kube, p, 40*time.Second, "ready", ready)
	got, _, _ := execIn(t, p, "c", nil, "cat", "/etc/hosts")
	for _, want := range []string{"# Kubernetes-managed hosts file.\n", "\n" + p.Status.PodIP + "\thosts\n", "192.0.2.1\tfoo\tbar\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if got, _, _ = execIn(t, p, "own", nil, "cat", "/etc/hosts"); got != "192.0.2.9 mine\n" {
		t.Errorf("the volume shows %q", got)
	}
}

// A volume in memory is memory, shared by the pod's containers, bounded, and
// outlives them.
func TestMemoryVolume(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	size := resource.MustParse("8Mi")
	p := create(t, kube, ns, pod("memory", `grep " /m " /proc/mounts >> /m/log; [ $(wc -l < /m/log) -ge 2 ] && sleep 600; sleep 0.2; exit 1`,
		restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, container("other", "sleep 600"))
			p.Spec.Volumes = []corev1.Volume{{Name: "m", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}}}
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{{Name: "m", MountPath: "/m"}}
			}
		}))
	p = await(t, kube, p, 60*time.Second, "restarted and ready", func(p *corev1.Pod) bool { return status(p, "c").RestartCount == 1 && ready(p) })
	got, _, _ := execIn(t, p, "other", nil, "cat", "/m/log")
	if lines := strings.Split(strings.TrimSpace(got), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], "tmpfs /m tmpfs") {
		t.Errorf("the other container reads %q", got)
	}
	if _, msg, code := execIn(t, p, "other", nil, "dd", "if=/dev/zero", "of=/m/big", "bs=1M", "count=20"); code == 0 || !strings.Contains(msg, "No space left") {
		t.Errorf("20 MiB fit into 8: %q", msg)
	}
}
