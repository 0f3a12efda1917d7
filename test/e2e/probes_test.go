package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

func command(script string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}}
}

// everySecond is a probe of which one failure is enough.
func everySecond(h corev1.ProbeHandler) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 1}
}

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.PodCondition{}
}

// TestReadinessProbe follows a web server that is ready, and not, and ready;
// nobody notices when nomad-kubelet is killed meanwhile.
func TestReadinessProbe(t *testing.T) {
	p := pod("web", `mkdir -p /www && exec busybox httpd -f -p 8080 -h /www`)
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	p.Spec.Containers[0].ReadinessProbe = everySecond(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}})
	p = create(t, kube, namespace(t, kube), p)
	p = await(t, kube, p, time.Minute, "running", phase(corev1.PodRunning))
	if ready(p) || status(p, "c").Ready || !*status(p, "c").Started {
		t.Errorf("before the first success:\n%s", describe(p))
	}
	if msg := eventOf(t, kube, p, "Unhealthy"); msg != "Readiness probe failed: HTTP probe failed with statuscode: 404" {
		t.Errorf("event %q", msg)
	}
	execIn(t, p, "c", nil, "touch", "/www/ready")
	p = await(t, kube, p, 10*time.Second, "ready", ready)

	since := conditionOf(p, corev1.PodReady).LastTransitionTime
	if err := cluster.Kill(t.Context(), devcluster.NomadKubelet); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Start(t.Context(), devcluster.NomadKubelet); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "nomad-kubelet answers", func() error {
		return kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{}).Do(t.Context()).Error()
	})
	touch(t, p)
	time.Sleep(3 * time.Second) // three probes
	p = await(t, kube, p, 10*time.Second, "ready", ready)
	if now := conditionOf(p, corev1.PodReady).LastTransitionTime; !now.Equal(&since) {
		t.Errorf("it was ready since %s and is since %s", since, now)
	}

	execIn(t, p, "c", nil, "rm", "/www/ready")
	p = await(t, kube, p, 20*time.Second, "not ready", func(p *corev1.Pod) bool { return !ready(p) })
	if c := conditionOf(p, corev1.PodReady); c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [c]" || p.Status.Phase != corev1.PodRunning {
		t.Errorf("%s: %s %s", p.Status.Phase, c.Reason, c.Message)
	}
	execIn(t, p, "c", nil, "touch", "/www/ready")
	p = await(t, kube, p, 10*time.Second, "ready again", ready)
	if n := status(p, "c").RestartCount; n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// TestLivenessProbe has a container killed that does not hear its stop signal.
func TestLivenessProbe(t *testing.T) {
	p := pod("sick", `touch /tmp/well; sleep 3; rm /tmp/well; while :; do sleep 1; done`, restart(corev1.RestartPolicyAlways))
	p.Spec.Containers[0].LivenessProbe = everySecond(command("test -e /tmp/well || { echo sick; exit 1; }"))
	p = create(t, kube, namespace(t, kube), p)
	p = await(t, kube, p, time.Minute, "restarted", func(p *corev1.Pod) bool { return status(p, "c").RestartCount == 1 })
	last := status(p, "c").LastTerminationState.Terminated
	if last == nil {
		last = status(p, "c").State.Terminated
	}
	if last == nil || last.ExitCode != 137 || last.FinishedAt.Sub(last.StartedAt.Time) < 4*time.Second {
		t.Errorf("its last state is %+v", last)
	}
	if msg := eventOf(t, kube, p, "Unhealthy"); strings.TrimSpace(msg) != "Liveness probe failed: sick" {
		t.Errorf("event %q", msg)
	}
	if msg := eventOf(t, kube, p, "Killing"); msg != "Container c failed liveness probe, will be restarted" {
		t.Errorf("event %q", msg)
	}
}

// TestStartupProbe holds the liveness probe, which would kill the container, and
// the readiness back until the container has started.
func TestStartupProbe(t *testing.T) {
	p := pod("slow", `sleep 4; touch /tmp/up; trap 'exit 0' TERM; while :; do sleep 1; done`, restart(corev1.RestartPolicyAlways))
	c := &p.Spec.Containers[0]
	c.StartupProbe, c.LivenessProbe = everySecond(command("test -e /tmp/up")), everySecond(command("test -e /tmp/up"))
	c.StartupProbe.FailureThreshold = 30
	p = create(t, kube, namespace(t, kube), p)
	p = await(t, kube, p, time.Minute, "running", phase(corev1.PodRunning))
	if st := status(p, "c"); *st.Started || st.Ready {
		t.Errorf("before its startup probe: started %v, ready %v", *st.Started, st.Ready)
	}
	p = await(t, kube, p, 30*time.Second, "ready", ready)
	st := status(p, "c")
	if took := conditionOf(p, corev1.PodReady).LastTransitionTime.Sub(st.State.Running.StartedAt.Time); !*st.Started || st.RestartCount != 0 || took < 4*time.Second {
		t.Errorf("started %v after %s, %d restarts", *st.Started, took, st.RestartCount)
	}
}

// TestSidecarProbes has a sidecar's startup probe, by TCP, hold back the main
// container.
func TestSidecarProbes(t *testing.T) {
	p := pod("served", `date +%s; sleep 1000`)
	always := corev1.ContainerRestartPolicyAlways
	side := container("side", `sleep 3; date +%s; exec busybox httpd -f -p 9000`)
	side.RestartPolicy = &always
	side.StartupProbe = everySecond(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9000)}})
	side.StartupProbe.FailureThreshold = 30
	p.Spec.InitContainers = []corev1.Container{side}
	p = create(t, kube, namespace(t, kube), p)
	p = await(t, kube, p, time.Minute, "ready", ready)
	at := func(c string) string {
		return strings.TrimSpace(logs(t, kube, p, &corev1.PodLogOptions{Container: c}))
	}
	if up, main := at("side"), at("c"); up == "" || main < up {
		t.Errorf("the sidecar was up at %s, the main container started at %s", up, main)
	}
}

// TestProbeTimeout has a command that never ends fail, and killed, each time.
func TestProbeTimeout(t *testing.T) {
	p := pod("late", `sleep 1000`)
	p.Spec.Containers[0].ReadinessProbe = everySecond(command("exec sleep 4711"))
	p.Spec.Containers[0].ReadinessProbe.TimeoutSeconds = 1
	p = create(t, kube, namespace(t, kube), p)
	p = await(t, kube, p, time.Minute, "running", phase(corev1.PodRunning))
	if msg := eventOf(t, kube, p, "Unhealthy"); !strings.Contains(msg, "timed out after 1s") {
		t.Errorf("event %q", msg)
	}
	// Each lives for a second and a moment more; without the kill they would pile up.
	time.Sleep(8 * time.Second)
	out, _, _ := execIn(t, p, "c", nil, "sh", "-c", `ps | grep -c "[0-9] [s]leep 4711$"`)
	if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || n > 3 {
		t.Errorf("%q of them run", out)
	}
}
