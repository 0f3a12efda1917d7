package pods

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func hooked(post, pre *corev1.LifecycleHandler) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: post, PreStop: pre}
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	}
}

func both(fs ...func(*corev1.Pod)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, f := range fs {
			f(p)
		}
	}
}

func execHook(argv ...string) *corev1.LifecycleHandler {
	return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: argv}}
}

// commands lets the test end each command that is run in a task.
func (r *room) commands() (started chan taskexec.Command, end chan int) {
	started, end = make(chan taskexec.Command, 10), make(chan int, 10)
	r.run = func(c taskexec.Command) (int, error) {
		started <- c
		select {
		case code := <-end:
			return code, nil
		case <-r.t.Context().Done():
			return 0, r.t.Context().Err()
		}
	}
	return started, end
}

func TestPostStart(t *testing.T) {
	r := newRoom(t)
	begun, end := r.commands()
	pod := r.pod(hooked(execHook("warm", "up"), nil))
	e := entry("running", tasks{"web": running(0, epoch)})
	r.follows(pod, e)
	r.follows(pod, e) // it runs once
	if c := <-begun; !slices.Equal(c.Argv, []string{"warm", "up"}) || c.Task != "web" || c.AllocID != "a1" {
		t.Errorf("ran %+v", c)
	}
	if got := r.read(pod).Status; got.Phase == corev1.PodRunning || len(got.ContainerStatuses) > 0 && got.ContainerStatuses[0].State.Running != nil {
		t.Errorf("told as running before its hook has ended: %+v", got)
	}
	end <- 0
	r.woken()
	r.follows(pod, e)
	got := r.read(pod)
	if got.Status.Phase != corev1.PodRunning || !got.Status.ContainerStatuses[0].Ready {
		t.Errorf("%+v", got.Status)
	}
	r.event("Normal Started")
	// A later self takes what was told for done.
	r.restart()
	r.follows(got, e)
	if len(begun) > 0 || r.read(pod).Status.Phase != corev1.PodRunning {
		t.Error("the hook runs again after a restart")
	}
	// Another run of the container has a hook of its own.
	e.Allocs[0] = newAlloc("a1", "running", tasks{"web": running(1, epoch.Add(time.Minute))})
	r.follows(got, e)
	<-begun
	end <- 0
	r.woken()
}

// What starts after a container waits until its postStart hook has ended, well
// or not, or until it is known that it cannot be started.
func TestPostStartHoldsOthers(t *testing.T) {
	waiting := func() *api.TaskState { return &api.TaskState{State: "pending"} }
	for name, how := range map[string]struct {
		state *api.TaskState
		code  int
	}{
		"ends well": {running(0, epoch), 0}, "fails": {running(0, epoch), 1},
		"ended": {crashed(1, 1, epoch, epoch), -1}, "cannot start": {unstarted(1, epoch), -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			begun, end := r.commands()
			pod := r.pod(both(hooked(execHook("warm"), nil), func(p *corev1.Pod) {
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "img"})
			}))
			r.follows(pod, entry("pending", tasks{"web": waiting(), "b": waiting()}))
			r.asked()
			e := entry("pending", tasks{"web": how.state, "b": waiting()})
			if how.code >= 0 {
				r.follows(pod, e)
				<-begun
				r.asked()
				end <- how.code
				r.woken()
			}
			r.follows(pod, e)
			if got := r.nomad.take(); !slices.Contains(got, "PUT "+gate("b")+" open") {
				t.Errorf("asked %q", got)
			}
		})
	}
}

func TestPostStartFails(t *testing.T) {
	r := newRoom(t)
	begun, end := r.commands()
	pod := r.pod(hooked(execHook("false"), nil))
	e := entry("running", tasks{"web": running(0, epoch)})
	r.follows(pod, e)
	<-begun
	end <- 1
	r.woken()
	r.nomad.take()
	if again := r.follows(pod, e); again != 30*time.Second {
		t.Errorf("look again in %s", again)
	}
	r.asked("PUT client/allocation/a1/signal web SIGTERM")
	r.event("Warning FailedPostStartHook")
	r.clock.Step(30 * time.Second)
	r.follows(pod, e)
	r.asked("PUT client/allocation/a1/signal web SIGKILL")
	r.noEvent()
}

// A hook that could not be run is no failed hook: it is tried again, for a while
// where Nomad is there and cannot, for as long as it takes where it is away.
func TestPostStartUnheard(t *testing.T) {
	r := newRoom(t)
	lost, ran := errors.New("connection reset"), 0
	r.run = func(taskexec.Command) (int, error) { ran++; return 0, lost }
	pod := r.pod(hooked(execHook("warm", "up"), nil))
	e := entry("running", tasks{"web": running(0, epoch)})
	r.follows(pod, e)
	r.woken()
	if again := r.follows(pod, e); again != hookPause {
		t.Errorf("look again in %s", again)
	}
	if r.follows(pod, e); ran != 1 {
		t.Errorf("it ran %d times before its time", ran)
	}
	r.clock.Step(hookPause)
	r.follows(pod, e)
	r.woken()
	if again := r.follows(pod, e); again != 2*hookPause || ran != 2 {
		t.Errorf("look again in %s after %d tries", again, ran)
	}
	lost = nil
	r.clock.Step(2 * hookPause)
	r.follows(pod, e)
	r.woken()
	r.follows(pod, e)
	if got := r.read(pod).Status; ran != 3 || got.Phase != corev1.PodRunning {
		t.Errorf("%s after %d tries", got.Phase, ran)
	}
	r.asked()

	var run hookRun
	run.over(&unheardError{errors.New("away")}, true, epoch)
	if run.tries != 0 || !run.again.Equal(epoch.Add(hookPause)) {
		t.Errorf("%+v", run)
	}
	for range hookTries {
		run.over(&unheardError{errors.New("no such thing")}, false, epoch)
	}
	if !run.again.IsZero() || !run.done || run.err == nil {
		t.Errorf("%+v", run)
	}
}

// What Nomad has not told yet of the end of a container is no trouble.
func TestSignalOfTheDead(t *testing.T) {
	r := newRoom(t)
	for text, want := range map[string]bool{"Task not running": true, "Cannot kill container: c: Container c is not running": true, "no route": false} {
		r.nomad.answers["PUT client/allocation/a1/signal"] = answer{500, text}
		if err := r.signal(ctx, "docker", newAlloc("a1", "running", nil), "web", "SIGKILL"); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestHTTPHook(t *testing.T) {
	r := newRoom(t)
	var asked, answer string
	r.run = func(c taskexec.Command) (int, error) {
		buf := new(bytes.Buffer)
		_, _ = buf.ReadFrom(c.In)
		asked = c.Task + " " + strings.Join(c.Argv, " ") + " " + buf.String()
		_, _ = c.Out.Write([]byte(answer + "\n"))
		return 0, nil
	}
	pod := r.pod(hooked(&corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "/echo?msg=a", Port: intstr.FromString("http"), Scheme: corev1.URISchemeHTTPS, HTTPHeaders: []corev1.HTTPHeader{{Name: "x-a", Value: "b"}},
	}}, nil))
	e := entry("running", tasks{"web": running(0, epoch), translate.CompanionTask: running(0, epoch)})
	e.Allocs[0].NetworkStatus = &api.AllocNetworkStatus{Address: "192.0.2.7"}
	ct := &pod.Spec.Containers[0]
	answer = companion.AnswerDone
	if err := r.runHandler(ctx, pod, e.Allocs[0], ct, ct.Lifecycle.PostStart); err != nil {
		t.Error(err)
	}
	if want := `pod.companion /companion get {"url":"https://192.0.2.7:8080/echo?msg=a","header":{"X-A":["b"]}}`; asked != want {
		t.Errorf("asked the companion\n  %s\nwant\n  %s", asked, want)
	}
	answer = companion.AnswerFailed + "connection refused"
	if err := r.runHandler(ctx, pod, e.Allocs[0], ct, ct.Lifecycle.PostStart); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
	if err := r.runHandler(ctx, pod, e.Allocs[0], ct, ct.Lifecycle.PostStart); unheard(err) {
		t.Errorf("an answer is taken for none: %v", err)
	}
	answer = ""
	if err := r.runHandler(ctx, pod, e.Allocs[0], ct, ct.Lifecycle.PostStart); !unheard(err) {
		t.Errorf("no answer: %v", err)
	}
	delete(e.Allocs[0].TaskStates, translate.CompanionTask)
	if err := r.runHandler(ctx, pod, e.Allocs[0], ct, ct.Lifecycle.PostStart); err == nil {
		t.Error("no error without a companion")
	}
}

// The container is told to end when its hook has, and the job is stopped when
// nothing is left of it.
func TestPreStop(t *testing.T) {
	r := newRoom(t)
	begun, end := r.commands()
	pod := r.pod(both(hooked(nil, execHook("drain")), deleting(30), func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "plain", Image: "img"})
	}))
	e := entry("running", tasks{"web": running(0, epoch), "plain": running(0, epoch)})
	if again := r.must(r.terminate(ctx, pod, e, true)); again != 31*time.Second {
		t.Errorf("look again in %s", again)
	}
	if c := <-begun; c.Task != "web" || c.Argv[0] != "drain" {
		t.Errorf("ran %+v", c)
	}
	r.asked("PUT client/allocation/a1/signal plain SIGTERM")
	r.clock.Step(5 * time.Second)
	// What has ended stays so.
	e.Allocs[0] = newAlloc("a1", "running", tasks{"web": running(0, epoch), "plain": crashed(143, 1, epoch, r.clock.Now())})
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked("PUT " + gate("plain") + " hold")
	end <- 0
	r.woken()
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked("PUT client/allocation/a1/signal web SIGTERM")
	e.Allocs[0] = newAlloc("a1", "running", tasks{"web": crashed(0, 1, epoch, r.clock.Now()), "plain": crashed(143, 1, epoch, r.clock.Now())})
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked("DELETE job/" + jobID)
}

// A hook that takes too long does not save its container.
func TestPreStopTooLong(t *testing.T) {
	r := newRoom(t)
	begun, _ := r.commands()
	pod := r.pod(both(hooked(nil, execHook("sleep", "1000")), deleting(30)))
	e := entry("running", tasks{"web": running(0, epoch)})
	r.must(r.terminate(ctx, pod, e, true))
	<-begun
	r.asked()
	r.clock.Step(31 * time.Second)
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked("DELETE job/"+jobID, "PUT client/allocation/a1/signal web SIGKILL")
}

func TestSidecarsEndLastInReverse(t *testing.T) {
	r := newRoom(t)
	always := corev1.ContainerRestartPolicyAlways
	pod := r.pod(both(deleting(30), func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "one", RestartPolicy: &always}, {Name: "two", RestartPolicy: &always}}
	}))
	alive := tasks{"one": running(0, epoch), "two": running(0, epoch), "web": running(0, epoch)}
	step := func(dead string, want ...string) {
		t.Helper()
		if dead != "" {
			alive[dead] = crashed(0, 1, epoch, r.clock.Now())
		}
		e := entry("running", alive)
		r.must(r.terminate(ctx, r.read(pod), e, true))
		r.asked(want...)
	}
	step("", "PUT client/allocation/a1/signal web SIGTERM")
	step("")
	step("web", "PUT client/allocation/a1/signal two SIGTERM", "PUT "+gate("web")+" hold")
	// The last one ends with the job.
	step("two", "DELETE job/"+jobID)
}

// A companion that cannot be made is told of, and tried again as nothing of the
// pod has run.
func TestCompanionThatCannotStart(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	failed := &api.TaskState{State: "dead", Failed: true, Events: []*api.TaskEvent{
		{Type: api.TaskDriverFailure, Time: epoch.UnixNano(), DisplayMessage: "no such runtime"},
	}}
	e := entry("failed", tasks{"web": {State: "dead"}, translate.CompanionTask: failed})
	if again := r.follows(pod, e); again != 10*time.Second {
		t.Errorf("look again in %s", again)
	}
	r.event("Warning FailedMount the pod's companion (virtualNodes[].companionImage) does not start: no such runtime")
	if w := r.read(pod).Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ContainerCreating" {
		t.Errorf("%+v", r.read(pod).Status)
	}
	r.nomad.take()
	r.clock.Step(10 * time.Second)
	r.follows(pod, e)
	if asked := r.nomad.take(); !slices.Contains(asked, "DELETE job/"+jobID+" purge") {
		t.Errorf("asked %q", asked)
	}
}
