package pods

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// execProbe never comes due in these tests, which report for it.
func execProbe() *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}}, InitialDelaySeconds: 3600}
}

// finds is what a probe of the task's run since then has come to.
func (r *room) finds(container string, kind probes.Kind, since time.Time, ok bool) {
	outcome := probes.Success
	if !ok {
		outcome = probes.Failure
	}
	r.reported("u", probes.Report{
		Container: container, Kind: kind, Run: runOf(newAlloc("a1", "", nil), running(0, since)), At: r.clock.Now(), Outcome: outcome, Output: "why", Result: &ok,
	})
}

// told is a container's started and ready as told.
func (r *room) told(pod *corev1.Pod, container string) string {
	r.t.Helper()
	st := statusOf(r.read(pod), container)
	out := "not started"
	if st.Started != nil && *st.Started {
		out = "started"
	}
	if st.Ready {
		out += ", ready"
	}
	return out
}

func (r *room) is(pod *corev1.Pod, container, want string) {
	r.t.Helper()
	if got := r.told(pod, container); got != want {
		r.t.Errorf("container %s is %s, want %s", container, got, want)
	}
}

func (r *room) passes(pod *corev1.Pod, tasks map[string]*api.TaskState) time.Duration {
	r.t.Helper()
	return r.follows(pod, entry("running", tasks))
}

func TestStartedAndReadyByProbes(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].StartupProbe, p.Spec.Containers[0].ReadinessProbe = execProbe(), execProbe()
	})
	on := tasks{"web": running(0, epoch)}
	r.passes(pod, on)
	r.is(pod, "web", "not started")
	r.finds("web", probes.Readiness, epoch, true) // it does not count yet
	r.passes(pod, on)
	r.is(pod, "web", "not started")
	r.finds("web", probes.Readiness, epoch, false)
	r.event("Warning Unhealthy Readiness probe failed: why")
	r.finds("web", probes.Startup, epoch, true)
	r.passes(pod, on)
	r.is(pod, "web", "started")
	r.finds("web", probes.Readiness, epoch, true)
	r.passes(pod, on)
	r.is(pod, "web", "started, ready")

	// What was said of one run says nothing of the next, however late it comes.
	again := epoch.Add(time.Minute)
	r.passes(pod, tasks{"web": running(1, again)})
	r.is(pod, "web", "not started")
	r.finds("web", probes.Startup, epoch, true)
	r.passes(pod, tasks{"web": running(1, again)})
	r.is(pod, "web", "not started")
	r.noEvent()
}

// A restart of this process is seen by nobody.
func TestReadinessOutlivesARestart(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].StartupProbe, p.Spec.Containers[0].ReadinessProbe = execProbe(), execProbe()
	})
	on := tasks{"web": running(0, epoch)}
	r.passes(pod, on)
	r.finds("web", probes.Startup, epoch, true)
	r.finds("web", probes.Readiness, epoch, true)
	r.passes(pod, on)
	r.is(pod, "web", "started, ready")
	before := len(r.patches())
	r.restart()
	r.passes(pod, on)
	r.is(pod, "web", "started, ready")
	if n := len(r.patches()) - before; n != 0 {
		t.Errorf("%d patches", n)
	}
	// But of a run that began meanwhile nothing is known.
	r.restart()
	r.passes(pod, tasks{"web": running(1, epoch.Add(time.Minute))})
	r.is(pod, "web", "not started")
}

func TestLivenessKills(t *testing.T) {
	signal := "PUT client/allocation/a1/signal web "
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		signal string
		grace  time.Duration
		event  string
	}{
		"plain": {func(p *corev1.Pod) {}, "SIGTERM", 30 * time.Second, "Container web failed liveness probe, will be restarted"},
		"its own grace": {func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe.TerminationGracePeriodSeconds = new(int64(5))
		}, "SIGTERM", 5 * time.Second, "Container web failed liveness probe, will be restarted"},
		"no grace, never again, by another signal": {func(p *corev1.Pod) {
			p.Spec.TerminationGracePeriodSeconds, p.Spec.RestartPolicy = new(int64(0)), corev1.RestartPolicyNever
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{StopSignal: new(corev1.Signal("SIGUSR1"))}
		}, "SIGUSR1", 2 * time.Second, "Container web failed liveness probe"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			pod := r.pod(func(p *corev1.Pod) {
				p.Spec.Containers[0].LivenessProbe = execProbe()
				c.change(p)
			})
			on := tasks{"web": running(0, epoch)}
			r.passes(pod, on)
			r.asked()
			r.finds("web", probes.Liveness, epoch, false)
			r.event("Warning Unhealthy Liveness probe failed: why")

			// Trouble with Nomad is no reason to say it twice.
			r.nomad.answer("PUT client/allocation/a1/signal", http.StatusInternalServerError, "no")
			if _, err := r.follow(t.Context(), r.read(pod), entry("running", on)); err == nil {
				t.Error("no error")
			}
			r.nomad.asIs()
			r.nomad.take()
			if again := r.passes(pod, on); again != c.grace {
				t.Errorf("look again in %s", again)
			}
			r.asked(signal + c.signal)
			r.event("Normal Killing " + c.event)
			r.noEvent()
			r.clock.Step(c.grace - time.Second)
			if again := r.passes(pod, on); again != time.Second {
				t.Errorf("look again in %s", again)
			}
			r.asked()
			r.clock.Step(time.Second)
			for range 2 {
				r.passes(pod, on)
			}
			r.asked(signal + "SIGKILL")
			// The next run is left alone.
			r.passes(pod, tasks{"web": running(1, r.clock.Now())})
			r.asked()
			r.noEvent()
		})
	}
}

func TestStartupKills(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) { p.Spec.Containers[0].StartupProbe = execProbe() })
	on := tasks{"web": running(0, epoch)}
	r.passes(pod, on)
	r.finds("web", probes.Startup, epoch, false)
	r.passes(pod, on)
	r.asked("PUT client/allocation/a1/signal web SIGTERM")
	r.event("Warning Unhealthy Startup probe failed: why")
	r.event("Normal Killing Container web failed startup probe, will be restarted")
	r.is(pod, "web", "not started")
}

func TestEventsOfAttempts(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) { p.Spec.Containers[0].LivenessProbe = execProbe() })
	r.passes(pod, tasks{"web": running(0, epoch)})
	attempt := probes.Report{Container: "web", Kind: probes.Liveness, Run: runOf(newAlloc("a1", "", nil), running(0, epoch)), Output: strings.Repeat("x", 2000)}
	for outcome, want := range map[probes.Outcome]string{
		probes.Failure: "Warning Unhealthy Liveness probe failed: xxx",
		probes.Warning: "Warning ProbeWarning Liveness probe warning: xxx",
		probes.Unknown: "Warning Unhealthy Liveness probe errored and resulted in unknown state: xxx",
	} {
		attempt.Outcome = outcome
		r.reported("u", attempt)
		r.event(want)
	}
	r.reported("gone", attempt)
	r.noEvent()
	r.passes(pod, tasks{"web": running(0, epoch)})
	r.asked() // attempts alone kill nobody
}

// A sidecar's startup probe holds the containers after it behind their gates.
func TestSidecarsStartupHoldsOthers(t *testing.T) {
	r := newRoom(t)
	always := corev1.ContainerRestartPolicyAlways
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{
			{Name: "s1", Image: "i", RestartPolicy: &always, StartupProbe: execProbe()},
			{Name: "s2", Image: "i", RestartPolicy: &always, StartupProbe: execProbe()},
		}
	})
	waiting := func() *api.TaskState { return &api.TaskState{State: "pending"} }
	r.passes(pod, tasks{"s1": running(0, epoch), "s2": waiting(), "web": waiting()})
	r.asked()
	r.finds("s1", probes.Startup, epoch, true)
	r.passes(pod, tasks{"s1": running(0, epoch), "s2": waiting(), "web": waiting()})
	r.asked("PUT " + gate("s2") + " open")
	r.passes(pod, tasks{"s1": running(0, epoch), "s2": running(0, epoch), "web": waiting()})
	r.asked()
	if c := r.read(pod).Status.Conditions; !hasFalse(c, corev1.PodInitialized) {
		t.Errorf("it is initialized: %+v", c)
	}
	r.finds("s2", probes.Startup, epoch, true)
	r.passes(pod, tasks{"s1": running(0, epoch), "s2": running(0, epoch), "web": waiting()})
	r.asked("PUT " + gate("web") + " open")
	r.is(pod, "s2", "started, ready")
}

func hasFalse(list []corev1.PodCondition, kind corev1.PodConditionType) bool {
	for _, c := range list {
		if c.Type == kind {
			return c.Status == corev1.ConditionFalse
		}
	}
	return false
}

// A companion that only probes holds nothing back, and what it cannot do
// without is not waited for.
func TestNetworkProbesNeedTheCompanion(t *testing.T) {
	r := newRoom(t)
	called := make(chan taskexec.Command, 10)
	r.run = func(c taskexec.Command) (int, error) { called <- c; return 0, nil }
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}}
	})
	e := entry("running", tasks{"web": running(0, epoch)})
	e.Allocs[0].NetworkStatus = &api.AllocNetworkStatus{Address: "10.0.0.7"}
	r.follows(pod, e)
	r.is(pod, "web", "started, ready")

	e.Allocs[0].TaskStates[translate.CompanionTask] = running(0, epoch)
	r.follows(pod, e)
	r.is(pod, "web", "started")
	c := <-called
	if c.Task != translate.CompanionTask || strings.Join(c.Argv, " ") != "/companion probes kube-probe/1.35" || c.AllocID != "a1" {
		t.Errorf("%+v", c)
	}
	r.asked()
}

// Of a pod that is being deleted only readiness is probed, and of one that is
// gone nothing.
func TestProbesEndWithThePod(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].LivenessProbe, p.Spec.Containers[0].ReadinessProbe = execProbe(), execProbe()
	})
	on := tasks{"web": running(0, epoch)}
	r.passes(pod, on)
	if len(r.prober.Pods()) != 1 {
		t.Error("nothing is probed")
	}
	about, state := probing{driver: "docker"}, probed{}
	if due := dueProbes(pod, &pod.Spec.Containers[0], about, state); len(due) != 2 {
		t.Errorf("%v are due", due)
	}
	gone := pod.DeepCopy()
	gone.DeletionTimestamp = new(metav1.NewTime(epoch))
	if due := dueProbes(gone, &gone.Spec.Containers[0], about, state); len(due) != 1 || due[probes.Readiness] == nil {
		t.Errorf("%v are due of a pod that is being deleted", due)
	}
	r.forget("u")
	if len(r.prober.Pods()) != 0 {
		t.Error("a pod that is gone is probed")
	}
}

// A VM takes no signals: its companion presses its power button, and at the end
// of the grace period pulls its plug.
func TestLivenessOfVM(t *testing.T) {
	r := newRoom(t)
	var mu sync.Mutex
	var got []string
	r.run = func(c taskexec.Command) (int, error) {
		if c.Task != translate.CompanionTask || !strings.HasPrefix(c.Argv[1], "vm-") {
			return 0, nil
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, c.Argv[1])
		_, err := fmt.Fprintln(c.Out, companion.AnswerDone)
		return 0, err
	}
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new("nomad-vm")
		p.Spec.Containers[0].LivenessProbe = execProbe()
	})
	on := tasks{"web": running(0, epoch), translate.CompanionTask: running(0, epoch)}
	r.passes(pod, on)
	r.finds("web", probes.Liveness, epoch, false)
	for range 3 {
		r.passes(pod, on)
		r.clock.Step(20 * time.Second)
	}
	mu.Lock()
	defer mu.Unlock()
	if strings.Join(got, " ") != "vm-press vm-cut" {
		t.Errorf("asked for %v", got)
	}
}
