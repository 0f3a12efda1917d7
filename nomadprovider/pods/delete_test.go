package pods

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// deleting marks the pod as being deleted with that grace.
func deleting(grace int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		at := metav1.NewTime(epoch.Add(time.Duration(grace) * time.Second))
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds, p.Finalizers = &at, &grace, []string{"x/y"}
	}
}

// removed says whether the object was removed for good: by force, and only it.
func (r *room) removed() bool {
	for _, a := range r.kube.Actions() {
		if d, ok := a.(clienttesting.DeleteActionImpl); ok {
			o := d.GetDeleteOptions()
			if o.GracePeriodSeconds == nil || *o.GracePeriodSeconds != 0 || o.Preconditions == nil || *o.Preconditions.UID != "u" {
				r.t.Errorf("removed with %+v", o)
			}
			return true
		}
	}
	return false
}

func TestGracefulDelete(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(deleting(30))
	e := entry("running", tasks{"web": running(0, epoch)})
	r.must(r.terminate(ctx, pod, e, true))
	r.asked("DELETE job/" + jobID)
	if r.removed() || r.read(pod).Status.Phase != corev1.PodRunning {
		t.Error("removed while it runs")
	}
	e.Job.Stopped = true
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked()
	e.Allocs[0] = newAlloc("a1", "complete", tasks{"web": ended(143, epoch, epoch)})
	r.must(r.terminate(ctx, r.read(pod), e, true))
	last := r.patches()[len(r.patches())-1]
	if !strings.Contains(last, `"phase":"Failed"`) || !strings.Contains(last, `"exitCode":143`) {
		t.Errorf("its end is not told: %s", last)
	}
	if !r.removed() {
		t.Error("not removed")
	}
}

func TestDeleteWithLessTime(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(deleting(5))
	e := entry("running", tasks{"web": running(0, epoch), "done": ended(0, epoch, epoch)})
	if left := r.must(r.terminate(ctx, pod, e, true)); left != 6*time.Second {
		t.Errorf("look again in %s", left)
	}
	r.nomad.take()
	e.Job.Stopped = true
	r.clock.Step(5900 * time.Millisecond)
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked()
	r.clock.Step(100 * time.Millisecond)
	r.must(r.terminate(ctx, r.read(pod), e, true))
	r.asked("PUT client/allocation/a1/signal web SIGKILL")
}

func TestDeleteOfWhatNeverRan(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(deleting(30))
	r.must(r.terminate(ctx, pod, entry("", nil), false))
	r.asked()
	if !r.removed() {
		t.Error("a pod without a job is not removed")
	}
	r = newRoom(t)
	pod = r.pod(deleting(30))
	e := entry("", nil)
	e.Allocs = nil
	r.must(r.terminate(ctx, pod, e, true))
	r.asked("DELETE job/"+jobID, "GET job/"+jobID+"/allocations")
	if !r.removed() {
		t.Error("a pod without a place is not removed")
	}
	// Nomad was about to place it.
	r = newRoom(t)
	pod = r.pod(deleting(30))
	r.nomad.answer("GET job/"+jobID+"/allocations", http.StatusOK, `[{"ID":"a1"}]`)
	if again := r.must(r.terminate(ctx, pod, e, true)); again == 0 || r.removed() {
		t.Errorf("again %s, removed %v", again, r.removed())
	}
}

func TestDeleteTrouble(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(deleting(30))
	r.nomad.answer("DELETE job/"+jobID, http.StatusInternalServerError, "No cluster leader")
	if _, err := r.terminate(ctx, pod, entry("running", nil), true); err == nil || r.removed() {
		t.Errorf("%v", err)
	}
	r.nomad.answer("DELETE job/"+jobID, http.StatusNotFound, "job not found")
	r.must(r.terminate(ctx, pod, entry("complete", tasks{"web": ended(0, epoch, epoch)}), true))
	if !r.removed() {
		t.Error("not removed")
	}
}

// gone makes the deletion of the pod seen.
func (r *room) gone(uid types.UID, grace int64) {
	r.podDeleted(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, DeletionGracePeriodSeconds: &grace}, Spec: corev1.PodSpec{NodeName: "n"}})
}

func TestReap(t *testing.T) {
	r := newRoom(t)
	r.gone("u", 30)
	e := r.seen("u", "ns/p")
	e.Allocs = []*api.Allocation{newAlloc("a1", "running", tasks{"web": running(0, epoch)})}
	r.must(r.reap(ctx, "u", e, true))
	r.asked("DELETE job/" + jobID)
	e.Job.Stopped = true
	r.must(r.reap(ctx, "u", e, true))
	r.asked()
	e.Allocs[0].ClientStatus = "complete"
	r.nomad.vars[translate.VariablePath(jobID)] = ""
	r.nomad.vars[translate.GatePath(jobID, "web")] = "hold"
	r.nomad.vars["nomad/jobs/k8s-c1-v"] = "of another"
	r.must(r.reap(ctx, "u", e, true))
	r.asked("GET vars", "DELETE var/"+translate.VariablePath(jobID), "DELETE "+gate("web"), "DELETE job/"+jobID+" purge")
	if len(r.nomad.vars) != 1 {
		t.Errorf("left %v", r.nomad.vars)
	}
	r.must(r.reap(ctx, "u", e, false))
	if len(r.state) != 0 {
		t.Errorf("remembers %v", r.state)
	}
}

func TestForceDeleteKills(t *testing.T) {
	r := newRoom(t)
	r.gone("u", 0)
	e := r.seen("u", "ns/p")
	e.Job.Stopped = true
	e.Allocs = []*api.Allocation{newAlloc("a1", "running", tasks{"web": running(0, epoch)})}
	r.must(r.reap(ctx, "u", e, true))
	r.asked("PUT client/allocation/a1/signal web SIGKILL")
	r.nomad.answer("PUT client/allocation/a1/signal", http.StatusInternalServerError, "Task not running")
	r.must(r.reap(ctx, "u", e, true)) // it has ended meanwhile
}

func TestPurgeTrouble(t *testing.T) {
	for _, what := range []string{"GET vars", "DELETE " + gate("web"), "DELETE job/" + jobID + " purge"} {
		r := newRoom(t)
		r.gone("u", 30)
		e := r.seen("u", "ns/p")
		e.Job.Stopped = true
		r.nomad.vars[translate.GatePath(jobID, "web")] = "hold"
		r.nomad.answer(what, http.StatusInternalServerError, "no")
		if _, err := r.reap(ctx, "u", e, true); err == nil {
			t.Errorf("%s: the failure is not told", what)
		}
		r.nomad.asIs()
		r.must(r.reap(ctx, "u", e, true))
		if got := r.nomad.take(); !slices.Contains(got, "DELETE job/"+jobID+" purge") {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestOrphanOfOneIsReaped(t *testing.T) {
	r := newRoom(t)
	r.seen("v", "ns/other")
	r.look(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other", UID: "v"}})
	e := r.seen("u", "ns/p")
	if wait := r.must(r.reap(ctx, "u", e, true)); wait != 0 {
		t.Errorf("wait %s", wait)
	}
	r.asked("DELETE job/"+jobID, "GET vars", "DELETE job/"+jobID+" purge")
}

// A pod that is only missing from the view, and not from the API server.
func TestOrphanThatIsNone(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	if err := r.informers[0].GetIndexer().Delete(pod); err != nil {
		t.Fatal(err)
	}
	r.podDeleted(cache.DeletedFinalStateUnknown{Obj: pod})
	e := r.seen("u", "ns/p")
	if wait := r.must(r.reap(ctx, "u", e, true)); wait == 0 {
		t.Error("it is reaped")
	}
	r.asked()
	// The API server does not answer.
	r.kube.PrependReactor("get", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("away") })
	if _, err := r.reap(ctx, "u", e, true); err == nil {
		t.Error("no answer is taken for one")
	}
	r.asked()
}

func TestForeignJobNameIsLeftAlone(t *testing.T) {
	r := newRoom(t)
	if _, err := r.reap(ctx, "u", r.seen("u", "somebody's"), true); err == nil || !strings.Contains(err.Error(), "left alone") {
		t.Errorf("%v", err)
	}
	r.asked()
}

// An API server that was set up anew or restored knows none or few of the pods.
func TestManyOrphansAreLeftAlone(t *testing.T) {
	for _, c := range []struct {
		jobs, pods int
		guarded    bool
	}{
		{1, 0, false},   // the only one
		{2, 0, true},    // all
		{3, 0, true},    // all
		{10, 7, false},  // a few of many
		{10, 6, true},   // many
		{50, 0, true},   // all
		{10, 10, false}, // none
	} {
		t.Run(fmt.Sprintf("%d of %d", c.jobs-c.pods, c.jobs), func(t *testing.T) {
			r := newRoom(t)
			for i := range c.jobs {
				uid, name := types.UID(fmt.Sprint("u", i)), fmt.Sprint("p", i)
				r.seen(uid, "ns/"+name)
				if i >= c.jobs-c.pods {
					r.look(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: uid}})
				}
			}
			want := time.Duration(0)
			if c.guarded {
				want = 10 * time.Minute
			}
			if got := r.guardOrphans(); got != want {
				t.Errorf("left alone for %s, want %s", got, want)
			}
			if !c.guarded {
				return
			}
			r.clock.Step(9 * time.Minute)
			if got := r.guardOrphans(); got != time.Minute {
				t.Errorf("after nine minutes for %s", got)
			}
			r.clock.Step(time.Minute)
			if got := r.guardOrphans(); got != 0 {
				t.Errorf("after ten minutes for %s", got)
			}
		})
	}
}

// Nomad collects dead jobs by itself and leaves their Variables, Secrets in
// them included.
func TestVariablesOfCollectedJobs(t *testing.T) {
	r := newRoom(t)
	r.gone("u", 30)
	r.must(r.reap(ctx, "u", allocs.Entry{}, false))
	if got := strings.Join(r.nomad.take(), "\n"); !strings.Contains(got, "GET vars") {
		t.Errorf("the Variables were not looked for: %s", got)
	}
	// A pod of which nothing was seen costs no request.
	r.must(r.reap(ctx, "v", allocs.Entry{}, false))
	r.asked()
}

// A pod of which nothing could be started is started again by a new job, after
// the kubelet's back-off for images.
func TestStartAgain(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })
	failed := &api.TaskState{State: "dead", Failed: true, Events: []*api.TaskEvent{
		{Type: api.TaskDriverFailure, Time: epoch.UnixNano(), DisplayMessage: "Failed to pull `img`: no such host"},
	}}
	e := allocs.Entry{Job: podJob(), Allocs: []*api.Allocation{newAlloc("a1", "failed", tasks{"web": failed})}}
	again, err := r.follow(ctx, pod, e)
	if err != nil || again != 10*time.Second {
		t.Errorf("again after %s, %v", again, err)
	}
	got := r.read(pod)
	if w := got.Status.ContainerStatuses[0].State.Waiting; got.Status.Phase != corev1.PodPending || w == nil || w.Reason != "ErrImagePull" {
		t.Errorf("phase %s, %+v", got.Status.Phase, got.Status.ContainerStatuses[0].State)
	}
	r.nomad.take()
	r.clock.Step(10 * time.Second)
	if _, err := r.follow(ctx, got, e); err != nil {
		t.Fatal(err)
	}
	if asked := strings.Join(r.nomad.take(), "\n"); !strings.Contains(asked, "purge") {
		t.Errorf("the job was not replaced: %s", asked)
	}
	// The next try fails, too.
	e.Allocs = []*api.Allocation{newAlloc("a2", "failed", tasks{"web": failed})}
	if again, err = r.follow(ctx, got, e); err != nil || again != 20*time.Second {
		t.Errorf("again after %s, %v", again, err)
	}
	if w := r.read(pod).Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ImagePullBackOff" {
		t.Errorf("%+v", w)
	}
	// What has started once is not started again.
	started := newAlloc("a3", "failed", tasks{"web": ended(5, epoch, epoch.Add(time.Second))})
	if unstartable(pod, started) {
		t.Error("a pod that ran would be run again")
	}
}
