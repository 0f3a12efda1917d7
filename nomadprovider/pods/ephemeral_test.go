package pods

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clienttesting "k8s.io/client-go/testing"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	debugUID = "6f1c7a52-3f0e-4f0b-9a51-0d2b1c3e4f51"
	debugJob = "k8sx-c1-" + debugUID + "-dbg"
)

// debugged is a pod with an ephemeral container that targets web.
func (r *room) debugged(change func(*corev1.Pod, *corev1.EphemeralContainer)) *corev1.Pod {
	return r.pod(func(p *corev1.Pod) {
		p.UID, p.Status.PodIP = debugUID, "172.26.64.9"
		p.Spec.EphemeralContainers = make([]corev1.EphemeralContainer, 1)
		ec := &p.Spec.EphemeralContainers[0]
		ec.Name, ec.Image, ec.TargetContainerName = "dbg", "busybox:1.36", "web"
		if change != nil {
			change(p, ec)
		}
	})
}

// beside adds the job of the ephemeral container to the view, with an allocation
// unless status is empty.
func beside(e allocs.Entry, status string, ts *api.TaskState) allocs.Entry {
	c := allocs.Entry{Job: allocs.Job{ID: debugJob, Name: "ns/p/dbg", Namespace: "default", CreateIndex: 30, ModifyIndex: 30}}
	if status != "" {
		a := newAlloc("e1", status, tasks{"dbg": ts})
		a.JobID = debugJob
		c.Allocs = []*api.Allocation{a}
	}
	e.Companions = map[string]allocs.Entry{"dbg": c}
	return e
}

// works makes the pass of the ephemeral containers and the one of the pod.
func (r *room) works(pod *corev1.Pod, e allocs.Entry) (*corev1.Pod, time.Duration) {
	r.t.Helper()
	again := r.must(r.workEphemeral(r.t.Context(), r.read(pod), e))
	again = sooner(again, r.follows(pod, e))
	return r.read(pod), again
}

func webRuns() allocs.Entry { return entry("running", tasks{"web": running(0, epoch)}) }

func (r *room) debugState(pod *corev1.Pod) corev1.ContainerState {
	return translate.EphemeralStatus(r.read(pod), "dbg").State
}

// noWarning fails if there was one.
func (r *room) noWarning() {
	r.t.Helper()
	for {
		select {
		case got := <-r.events.Events:
			if strings.HasPrefix(got, "Warning") {
				r.t.Errorf("event %q", got)
			}
		default:
			return
		}
	}
}

func TestEphemeralWaitsForItsTarget(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	for _, e := range []allocs.Entry{
		{Job: podJob()},
		entry("pending", tasks{"web": {State: "pending"}}),
		entry("running", tasks{"web": crashed(1, 1, epoch, epoch)}),
	} {
		r.must(r.workEphemeral(ctx, pod, e))
		r.asked()
	}
	r.works(pod, entry("running", tasks{"web": crashed(1, 1, epoch, epoch)}))
	if w := r.debugState(pod).Waiting; w == nil || w.Reason != "ContainerCreating" || !strings.Contains(w.Message, `"web"`) {
		t.Errorf("%+v", w)
	}
}

func TestEphemeralIsRegisteredOnce(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
		ec.Env = []corev1.EnvVar{{Name: "UID", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.uid"}}}}
	})
	r.must(r.workEphemeral(ctx, pod, webRuns()))
	r.asked("PUT jobs " + debugJob + " enforce=true@0")
	if got, _ := r.cache.Get(debugUID); got.Companions["dbg"].Job.ID != debugJob {
		t.Errorf("the view does not know of it: %+v", got)
	}
	// Another process of ours that does not see it yet.
	r.restart()
	r.must(r.workEphemeral(ctx, pod, webRuns()))
	r.asked("PUT jobs " + debugJob + " enforce=true@0")
	pod, _ = r.works(pod, beside(webRuns(), "", nil))
	if w := r.debugState(pod).Waiting; w == nil || w.Reason != "ContainerCreating" {
		t.Errorf("%+v", w)
	}
	pod, _ = r.works(pod, beside(webRuns(), "running", running(0, epoch)))
	st := translate.EphemeralStatus(pod, "dbg")
	if st.State.Running == nil || st.ContainerID != "nomad://e1/dbg" || pod.Status.Phase != corev1.PodRunning {
		t.Errorf("%+v, phase %s", st, pod.Status.Phase)
	}
	r.nomad.take()
	// It ends, and is never run again: not in a new process, not without its job.
	pod, _ = r.works(pod, beside(webRuns(), "failed", ended(7, epoch, epoch)))
	if end := r.debugState(pod).Terminated; end == nil || end.ExitCode != 7 {
		t.Errorf("%+v", end)
	}
	if pod.Status.Phase != corev1.PodRunning {
		t.Errorf("phase %s", pod.Status.Phase)
	}
	r.restart()
	r.look(pod)
	r.must(r.workEphemeral(ctx, pod, webRuns()))
	for _, what := range r.nomad.take() {
		if strings.HasPrefix(what, "PUT jobs") {
			t.Errorf("it runs again: %s", what)
		}
	}
}

// A value from a Secret lies in a Variable of the container's own.
func TestEphemeralVariable(t *testing.T) {
	r := newRoom(t)
	env := []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}}}
	pod := r.debugged(func(_ *corev1.Pod, ec *corev1.EphemeralContainer) { ec.Env = env })
	secretIs := func(there bool) {
		t.Helper()
		r.until("the Secret is read", func() bool {
			ready := r.objects.Watch(r.life, pod)
			_, _, secrets := r.objects.Keys(debugUID)
			return ready && (secrets["s"] != nil) == there
		})
	}
	secretIs(false)
	pod, _ = r.works(pod, webRuns())
	if w := r.debugState(pod).Waiting; w == nil || w.Reason != "CreateContainerConfigError" || w.Message != `secret "s" not found` {
		t.Errorf("%+v", w)
	}
	r.event("Warning Failed Error: secret")
	r.must(r.workEphemeral(ctx, pod, webRuns()))
	r.noWarning() // once
	r.asked()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns"}, Data: map[string][]byte{"k": []byte("v")}}
	if _, err := r.kube.CoreV1().Secrets("ns").Create(ctx, s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secretIs(true)
	r.must(r.workEphemeral(ctx, pod, webRuns()))
	r.asked("PUT var/nomad/jobs/"+debugJob+" ", "PUT jobs "+debugJob+" enforce=true@0")
}

func TestEphemeralThatCannotRun(t *testing.T) {
	register := "PUT jobs " + debugJob + " enforce=true@0"
	for name, c := range map[string]struct {
		change func(*corev1.Pod, *corev1.EphemeralContainer)
		status int
		body   string
		reason string // of a terminated state; empty: trouble
	}{
		"refused": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
			ec.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		}, 0, "", reasonRefused},
		"rejected": {nil, http.StatusInternalServerError, "1 error occurred: * no", "NomadRejectedJob"},
		"trouble":  {nil, http.StatusInternalServerError, "No cluster leader", ""},
		"denied":   {nil, http.StatusForbidden, "Permission denied", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			pod := r.debugged(c.change)
			if c.status != 0 {
				r.nomad.answer("PUT jobs", c.status, c.body)
			}
			_, err := r.workEphemeral(ctx, pod, webRuns())
			if (err == nil) != (c.reason != "") {
				t.Errorf("%v", err)
			}
			r.follows(pod, webRuns())
			pod = r.read(pod)
			if pod.Status.Phase != corev1.PodRunning {
				t.Errorf("phase %s", pod.Status.Phase)
			}
			end := r.debugState(pod).Terminated
			if c.reason == "" {
				if end != nil {
					t.Errorf("%+v", end)
				}
				r.noWarning()
				r.nomad.asIs()
				r.nomad.take()
				r.must(r.workEphemeral(ctx, pod, webRuns()))
				r.asked(register)
				return
			}
			if end == nil || end.Reason != c.reason || end.ExitCode != 128 {
				t.Errorf("%+v", end)
			}
			r.event("Warning " + c.reason)
			r.nomad.take()
			r.must(r.workEphemeral(ctx, pod, webRuns()))
			r.asked()
			r.noWarning()
		})
	}
}

// What could not be started is tried again by another job, as nothing of it ran.
func TestEphemeralIsTriedAgain(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	failed := unstarted(0, epoch)
	failed.State, failed.Failed = "dead", true
	pod, again := r.works(pod, beside(webRuns(), "failed", failed))
	if w := r.debugState(pod).Waiting; w == nil || w.Reason != "ErrImagePull" || again != 10*time.Second {
		t.Errorf("%+v, again %s", w, again)
	}
	r.asked()
	r.clock.Step(10 * time.Second)
	// Another container's Variable is none of its own.
	r.nomad.vars[translate.VariablePath(debugJob)] = ""
	r.nomad.vars[translate.VariablePath(debugJob+"-2")] = ""
	r.must(r.workEphemeral(ctx, pod, beside(webRuns(), "failed", failed)))
	r.asked("GET vars", "DELETE var/"+translate.VariablePath(debugJob), "DELETE job/"+debugJob+" purge")
}

func TestEphemeralWithoutAPlace(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	e := beside(webRuns(), "", nil)
	c := e.Companions["dbg"]
	c.Unplaced = "1 clients without enough memory"
	e.Companions["dbg"] = c
	pod, _ = r.works(pod, e)
	if w := r.debugState(pod).Waiting; w == nil || !strings.Contains(w.Message, c.Unplaced) {
		t.Errorf("%+v", w)
	}
}

// One whose job somebody purged while it ran is told as unknown, after Nomad was asked.
func TestEphemeralIsLost(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	pod, _ = r.works(pod, beside(webRuns(), "running", running(0, epoch)))
	r.nomad.jobs[debugJob] = true
	if _, err := r.workEphemeral(ctx, pod, webRuns()); err == nil {
		t.Error("it is told as lost while its event is on the way")
	}
	delete(r.nomad.jobs, debugJob)
	pod, _ = r.works(pod, webRuns())
	if end := r.debugState(pod).Terminated; end == nil || end.Reason != "ContainerStatusUnknown" || end.ExitCode != 137 {
		t.Errorf("%+v", end)
	}
}

func TestEphemeralEndsWithThePod(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(func(p *corev1.Pod, _ *corev1.EphemeralContainer) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
	pod, _ = r.works(pod, beside(webRuns(), "running", running(0, epoch)))
	r.nomad.take()
	e := beside(entry("complete", tasks{"web": ended(0, epoch, epoch)}), "running", running(0, epoch))
	pod, _ = r.works(pod, e)
	r.asked("DELETE job/" + debugJob)
	if pod.Status.Phase != corev1.PodRunning {
		t.Errorf("phase %s while something of it runs", pod.Status.Phase)
	}
	e = beside(entry("complete", tasks{"web": ended(0, epoch, epoch)}), "complete", ended(137, epoch, epoch))
	pod, _ = r.works(pod, e)
	if end := r.debugState(pod).Terminated; pod.Status.Phase != corev1.PodSucceeded || end == nil || end.ExitCode != 137 {
		t.Errorf("phase %s, %+v", pod.Status.Phase, end)
	}
	r.asked()
}

// A pod that failed for another reason takes its ephemeral containers with it,
// and their end is told.
func TestEphemeralOfAFailedPod(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	pod, _ = r.works(pod, beside(webRuns(), "running", running(0, epoch)))
	if err := r.fail(ctx, pod, nil, reasonReplaced, "x"); err != nil {
		t.Fatal(err)
	}
	pod = r.read(pod)
	r.nomad.take()
	r.must(r.workEphemeral(ctx, pod, beside(webRuns(), "running", running(0, epoch))))
	r.asked("DELETE job/" + debugJob)
	r.must(r.workEphemeral(ctx, pod, beside(webRuns(), "complete", ended(143, epoch, epoch))))
	if end := r.debugState(pod).Terminated; end == nil || end.ExitCode != 143 {
		t.Errorf("%+v", end)
	}
}

func TestDeleteOfADebuggedPod(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(func(p *corev1.Pod, _ *corev1.EphemeralContainer) { deleting(5)(p) })
	e := beside(webRuns(), "running", running(0, epoch))
	pass := func(e allocs.Entry) time.Duration {
		again := r.must(r.workEphemeral(ctx, r.read(pod), e))
		return sooner(again, r.must(r.terminate(ctx, r.read(pod), e, true)))
	}
	if left := pass(e); left != 6*time.Second {
		t.Errorf("look again in %s", left)
	}
	r.asked("DELETE job/"+debugJob, "DELETE job/"+jobID)
	c := e.Companions["dbg"]
	c.Job.Stopped, e.Job.Stopped = true, true
	e.Companions["dbg"] = c
	e.Allocs = []*api.Allocation{newAlloc("a1", "complete", tasks{"web": ended(143, epoch, epoch)})}
	r.clock.Step(6 * time.Second)
	pass(e)
	r.asked("PUT client/allocation/e1/signal dbg SIGKILL")
	for _, a := range r.kube.Actions() {
		if a.GetVerb() == "delete" {
			t.Error("removed while something of it runs")
		}
	}
	c.Allocs = []*api.Allocation{newAlloc("e1", "complete", tasks{"dbg": ended(137, epoch, epoch)})}
	e.Companions["dbg"] = c
	pass(e)
	if !slices.ContainsFunc(r.kube.Actions(), func(a clienttesting.Action) bool { return a.GetVerb() == "delete" }) {
		t.Error("not removed")
	}
}

func TestReapOfADebuggedPod(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	r.podDeleted(pod)
	if err := r.informers[0].GetIndexer().Delete(pod); err != nil {
		t.Fatal(err)
	}
	own := translate.JobID("c1", debugUID)
	e := beside(webRuns(), "running", running(0, epoch))
	e.Job.ID = own
	r.must(r.reap(ctx, debugUID, e, true))
	r.asked("DELETE job/"+own, "DELETE job/"+debugJob)
	e = beside(entry("complete", tasks{"web": ended(0, epoch, epoch)}), "complete", ended(0, epoch, epoch))
	e.Job.ID, e.Job.Stopped = own, true
	// A Variable whose job was never registered goes as well.
	left := translate.VariablePath(translate.CompanionID("c1", debugUID, "other"))
	r.nomad.vars[left], r.nomad.vars[translate.VariablePath(debugJob)] = "", ""
	r.must(r.reap(ctx, debugUID, e, true))
	r.asked("GET vars", "DELETE var/"+translate.VariablePath(debugJob), "DELETE job/"+debugJob+" purge",
		"GET vars", "DELETE var/"+left, "GET vars", "DELETE job/"+own+" purge")
}

// A companion that is left of a pod that is gone, of which nothing was seen.
func TestOrphanedCompanion(t *testing.T) {
	r := newRoom(t)
	e := beside(allocs.Entry{}, "running", running(0, epoch))
	r.must(r.reap(ctx, debugUID, e, false))
	r.asked("DELETE job/" + debugJob)
	e = beside(allocs.Entry{}, "complete", ended(0, epoch, epoch))
	r.must(r.reap(ctx, debugUID, e, false))
	r.asked("GET vars", "DELETE job/"+debugJob+" purge")
	// The pod is there: on a node that is not ours.
	pod := r.debugged(nil)
	if err := r.informers[0].GetIndexer().Delete(pod); err != nil {
		t.Fatal(err)
	}
	if wait := r.must(r.reap(ctx, debugUID, beside(allocs.Entry{}, "running", running(0, epoch)), false)); wait == 0 {
		t.Error("it is reaped")
	}
	r.asked()
}

func TestSweepFindsVariablesOfCompanions(t *testing.T) {
	r := newRoom(t)
	r.nomad.vars[translate.VariablePath(debugJob)] = ""
	if err := r.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	r.nomad.take()
	r.must(r.reconcile(ctx, debugUID))
	if len(r.nomad.vars) > 0 {
		t.Errorf("left %v", r.nomad.vars)
	}
}

// The whole pass: trouble with an ephemeral container does not keep the pod's
// status from being told.
func TestTroubleOfEphemeralIsNotThePods(t *testing.T) {
	r := newRoom(t)
	pod := r.debugged(nil)
	own := translate.JobID("c1", debugUID)
	r.cache.Registered(debugUID, allocs.Job{ID: own, Name: "ns/p", Namespace: "default", CreateIndex: 20, ModifyIndex: 20})
	r.cache.Registered(debugUID, allocs.Job{ID: debugJob, Name: "ns/p/dbg", Namespace: "default", CreateIndex: 20, ModifyIndex: 20})
	r.clock.Step(time.Minute)
	r.must(r.reconcile(ctx, debugUID))
	if st := r.read(pod).Status; st.StartTime == nil || len(st.EphemeralContainerStatuses) != 1 {
		t.Errorf("%+v", st)
	}
	// The pod's job was stopped, so the container's is to go, and Nomad does not answer.
	r.cache.Registered(debugUID, allocs.Job{ID: own, Name: "ns/p", Namespace: "default", CreateIndex: 20, ModifyIndex: 21, Stopped: true})
	r.nomad.answer("DELETE job/"+debugJob, http.StatusInternalServerError, "No cluster leader")
	if _, err := r.reconcile(ctx, debugUID); err == nil || !strings.Contains(err.Error(), debugJob) {
		t.Errorf("%v", err)
	}
	if st := r.read(pod).Status; st.Phase != corev1.PodFailed || st.Reason != reasonLost {
		t.Errorf("%+v", st)
	}
}
