package pods

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/projection"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const register = "PUT jobs " + jobID + " enforce=true@0"

func (r *room) reconciles(pod *corev1.Pod) time.Duration {
	r.t.Helper()
	r.read(pod)
	return r.must(r.reconcile(r.t.Context(), pod.UID))
}

func TestRegistersOnce(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.reconciles(pod)
	r.asked(register)
	if e, ok := r.cache.Get("u"); !ok || e.Job.ID != jobID || e.Job.Namespace != "default" {
		t.Errorf("%+v %v", e, ok)
	}
	r.reconciles(pod)
	r.asked()
	// A former self registered it and was killed before it heard of it.
	r.restart()
	r.reconciles(pod)
	r.asked(register)
	if got := r.read(pod).Status.Phase; got != corev1.PodPending {
		t.Errorf("phase %s", got)
	}
}

func TestRegisterTrouble(t *testing.T) {
	for _, a := range []answer{
		{http.StatusInternalServerError, "No cluster leader"}, {http.StatusForbidden, "Permission denied"},
		{http.StatusTooManyRequests, "slow down"}, {http.StatusInternalServerError, "nonexistent namespace"},
	} {
		r := newRoom(t)
		pod := r.pod(nil)
		r.nomad.answer("PUT jobs", a.status, a.body)
		if _, err := r.reconcile(ctx, pod.UID); err == nil || !strings.Contains(err.Error(), "register job "+jobID) || !strings.Contains(err.Error(), a.body) {
			t.Errorf("%v: %v", a, err)
		}
		if got := r.read(pod).Status.Phase; got != corev1.PodPending {
			t.Errorf("%v: phase %s", a, got)
		}
		r.nomad.asIs()
		r.nomad.take()
		r.reconciles(pod)
		r.asked(register)
	}
	for _, a := range []answer{{http.StatusBadRequest, "bad job"}, {http.StatusInternalServerError, "1 error occurred:\n* Task web validation failed"}} {
		r := newRoom(t)
		pod := r.pod(nil)
		r.nomad.answer("PUT jobs", a.status, a.body)
		r.reconciles(pod)
		s := r.read(pod).Status
		if s.Phase != corev1.PodFailed || s.Reason != reasonRejected || !strings.Contains(s.Message, a.body) {
			t.Errorf("%v: %s %s %q", a, s.Phase, s.Reason, s.Message)
		}
		r.event("Warning " + reasonRejected)
	}
}

func TestNomadDoesNotAnswer(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.nomad.answer("PUT jobs", 0, "")
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := r.reconcile(short, pod.UID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestRefuseOrWait(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	if err := r.refuseOrWait(ctx, pod, nil); err != nil || len(r.patches()) > 0 {
		t.Errorf("waits for objects to be read: %v %v", err, r.patches())
	}
	if err := r.refuseOrWait(ctx, pod, errors.New("away")); err == nil || len(r.patches()) > 0 {
		t.Errorf("trouble: %v %v", err, r.patches())
	}
	missing := &translate.MissingError{Messages: []string{`configmap "c" not found`}}
	for range 3 {
		if err := r.refuseOrWait(ctx, r.read(pod), missing); err != nil {
			t.Fatal(err)
		}
	}
	s := r.read(pod).Status
	if w := s.ContainerStatuses[0].State.Waiting; s.Phase != corev1.PodPending || w.Reason != reasonConfigError || w.Message != `configmap "c" not found` {
		t.Errorf("%+v", s)
	}
	r.event("Warning Failed Error: configmap")
	r.noEvent()
	if n := len(r.patches()); n != 1 {
		t.Errorf("%d patches", n)
	}
	for _, f := range []struct {
		err    error
		reason string
	}{
		{&translate.RefusedError{Refusals: []translate.Refusal{{Field: "spec.x", Reason: "not allowed"}}}, reasonRefused},
		{&projection.TooLargeError{Bytes: 70000}, reasonTooLarge},
	} {
		r := newRoom(t)
		pod := r.pod(nil)
		if err := r.refuseOrWait(ctx, pod, f.err); err != nil {
			t.Fatal(err)
		}
		s := r.read(pod).Status
		if s.Phase != corev1.PodFailed || s.Reason != f.reason || s.Message != f.err.Error() {
			t.Errorf("%+v", s)
		}
		r.event("Warning " + f.reason)
		if wait := r.reconciles(pod); wait != 0 {
			t.Errorf("look again in %s", wait)
		}
		r.asked() // and no job
	}
}

// reported makes the pod one whose allocation was told of.
func reported(p *corev1.Pod) {
	p.Status.Phase = corev1.PodRunning
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "web", ContainerID: "nomad://a1/web", Started: new(true), Ready: true,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(epoch)}},
	}}
}

func TestLost(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(reported)
	r.nomad.jobs[jobID] = true
	if _, err := r.reconcile(ctx, pod.UID); err == nil || !strings.Contains(err.Error(), "has not arrived") {
		t.Errorf("it is there: %v", err)
	}
	r.nomad.answer("GET job/"+jobID, http.StatusForbidden, "no")
	if _, err := r.reconcile(ctx, pod.UID); err == nil {
		t.Error("a refusal is taken for an answer")
	}
	if got := r.read(pod).Status.Phase; got != corev1.PodRunning {
		t.Fatalf("phase %s", got)
	}
	r.nomad.asIs()
	delete(r.nomad.jobs, jobID)
	r.nomad.take()
	r.reconciles(pod)
	s := r.read(pod).Status
	if s.Phase != corev1.PodFailed || s.Reason != reasonLost || s.ContainerStatuses[0].State.Terminated.ExitCode != 137 {
		t.Errorf("%+v", s)
	}
	r.event("Warning " + reasonLost)
	r.asked("GET job/" + jobID) // and it is not run again
	r.reconciles(pod)
	r.asked()
}

func TestReplaced(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(reported)
	e := entry("complete", tasks{"web": ended(143, epoch, epoch)})
	e.Allocs = append(e.Allocs, newAlloc("a2", "running", nil))
	r.follows(pod, e)
	r.asked("DELETE job/" + jobID)
	s := r.read(pod).Status
	if s.Phase != corev1.PodFailed || s.Reason != reasonReplaced || !strings.Contains(s.Message, "a2") {
		t.Errorf("%+v", s)
	}
	r.event("Warning " + reasonReplaced)
}

func TestStoppedBeforeItRan(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	j := podJob()
	j.Stopped = true
	r.cache.Registered("u", j)
	r.reconciles(pod)
	if s := r.read(pod).Status; s.Phase != corev1.PodFailed || s.Reason != reasonLost {
		t.Errorf("%+v", s)
	}
}

func TestPlacementIsTold(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	e := entry("", nil)
	e.Allocs, e.Unplaced = nil, "1 clients without enough memory"
	for range 3 {
		r.follows(pod, e)
	}
	r.event("Warning FailedPlacement")
	r.noEvent()
	r.follows(pod, entry("pending", tasks{"web": {State: "pending"}}))
	r.event("Normal Placed")
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	r.event("Normal Started")
	r.noEvent()
}

func TestDeadline(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(60)) })
	e := entry("running", tasks{"web": running(0, epoch)})
	if again := r.follows(pod, e); again != time.Minute {
		t.Errorf("look again in %s", again)
	}
	r.clock.Step(time.Minute)
	r.follows(pod, e)
	r.asked("DELETE job/" + jobID)
	if s := r.read(pod).Status; s.Phase != corev1.PodRunning {
		t.Errorf("over while it runs: %s", s.Phase)
	}
	e = entry("complete", tasks{"web": ended(143, epoch, epoch.Add(time.Minute))})
	e.Job.Stopped = true
	r.follows(pod, e)
	r.asked()
	s := r.read(pod).Status
	if s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || s.ContainerStatuses[0].State.Terminated.ExitCode != 143 {
		t.Errorf("%+v", s)
	}
	// One that ended by itself is not late.
	r = newRoom(t)
	pod = r.pod(func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(60)) })
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	r.clock.Step(time.Hour)
	r.follows(pod, entry("complete", tasks{"web": ended(0, epoch, epoch)}))
	if s := r.read(pod).Status; s.Reason != "" {
		t.Errorf("%s %s", s.Phase, s.Reason)
	}
}

func TestSidecarsEndBeforeThePod(t *testing.T) {
	r := newRoom(t)
	always := corev1.ContainerRestartPolicyAlways
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{{Name: "side", Image: "img", RestartPolicy: &always}}
	})
	r.follows(pod, entry("running", tasks{"side": running(0, epoch), "web": running(0, epoch)}))
	e := entry("running", tasks{"side": running(0, epoch), "web": ended(0, epoch, epoch)})
	r.follows(pod, e)
	r.asked("DELETE job/" + jobID)
	if got := r.read(pod).Status.Phase; got != corev1.PodRunning {
		t.Errorf("phase %s while the sidecar runs", got)
	}
	e.Job.Stopped = true
	r.follows(pod, e)
	r.asked()
	e = entry("complete", tasks{"side": ended(143, epoch, epoch), "web": ended(0, epoch, epoch)})
	e.Job.Stopped = true
	r.follows(pod, e)
	if got := r.read(pod).Status.Phase; got != corev1.PodSucceeded {
		t.Errorf("phase %s", got)
	}
}

func TestFinishedPodsJobIsStoppedOnce(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	r.reconciles(pod)
	r.asked()
	e := r.seen("u", "ns/p")
	e.Allocs = []*api.Allocation{newAlloc("a1", "running", nil)}
	r.must(0, r.retire(ctx, pod, e, true))
	r.asked("DELETE job/" + jobID)
	e.Job.Stopped = true
	r.must(0, r.retire(ctx, pod, e, true))
	r.asked()
	e.Job.Stopped, e.Allocs[0].ClientStatus = false, "complete"
	r.must(0, r.retire(ctx, pod, e, true))
	r.asked()
}

// TestTokensAreRefreshed sees to it that a token is replaced in time although
// nothing else of the pod changes, and although passes come in between.
func TestTokensAreRefreshed(t *testing.T) {
	r := newRoom(t)
	minted := 0
	r.kube.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		req := a.(clienttesting.CreateActionImpl).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		minted++
		req.Status.Token = fmt.Sprint("opaque", minted) // looked at again after 10 s
		return true, req, nil
	})
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: new(int64(600))}},
		}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "t", MountPath: "/t"}}
	})
	if again := r.reconciles(pod); again != 10*time.Second || minted != 1 {
		t.Fatalf("look again in %s, %d tokens", again, minted)
	}
	e := entry("running", tasks{"web": running(0, epoch)})
	r.clock.Step(4 * time.Second)
	if again := r.follows(pod, e); again != 6*time.Second || minted != 1 {
		t.Errorf("look again in %s, %d tokens", again, minted)
	}
	r.clock.Step(6 * time.Second)
	if again := r.follows(pod, e); again != 10*time.Second || minted != 2 {
		t.Errorf("look again in %s, %d tokens", again, minted)
	}
	// What cannot be done is tried again.
	r.clock.Step(10 * time.Second)
	r.nomad.answer("PUT var/"+translate.VariablePath(jobID), http.StatusInternalServerError, "no")
	if _, err := r.follow(ctx, r.read(pod), e); err == nil {
		t.Error("a failure is not told")
	}
	r.nomad.asIs()
	if again := r.follows(pod, e); again != 10*time.Second {
		t.Errorf("look again in %s", again)
	}
}

// A pod that runs keeps what it has of an object that was deleted, and what it
// has of others stays current.
func TestRunningPodOutlivesItsConfigMap(t *testing.T) {
	r := newRoom(t)
	if _, err := r.kube.CoreV1().ConfigMaps("ns").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}}
	})
	r.until("the ConfigMap is read", func() bool {
		r.reconciles(pod)
		_, ok := r.cache.Get("u")
		return ok
	})
	r.asked("PUT var/"+translate.VariablePath(jobID)+" ", register)
	e := entry("running", tasks{"web": running(0, epoch)})
	r.follows(pod, e)
	if err := r.kube.CoreV1().ConfigMaps("ns").Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("the deletion is seen", func() bool {
		keys, _, _ := r.objects.Keys("u")
		return keys["c"] == nil
	})
	r.nomad.take()
	r.changed("u")
	r.follows(pod, e)
	r.asked("GET var/" + translate.VariablePath(jobID))
	if s := r.read(pod).Status; s.Phase != corev1.PodRunning {
		t.Errorf("phase %s", s.Phase)
	}
}

// Of two pods that ask for the same port of the node, the later one is rejected;
// it may have the port when the other has finished.
func TestHostPortIsTaken(t *testing.T) {
	r := newRoom(t)
	ask := func(name string, port int32, made time.Duration) *corev1.Pod {
		return r.pod(func(p *corev1.Pod) {
			p.Name, p.UID, p.CreationTimestamp = name, types.UID(name), metav1.NewTime(epoch.Add(made))
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: port}}
		})
	}
	first, later, other := ask("first", 8080, 0), ask("later", 8080, second), ask("other", 8081, second)
	for _, p := range []*corev1.Pod{first, later, other} {
		if _, err := r.start(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.read(later).Status; got.Phase != corev1.PodFailed || got.Reason != "NodePorts" || !strings.HasPrefix(got.Message, "Pod was rejected: Predicate NodePorts failed") {
		t.Errorf("%s %s %s", got.Phase, got.Reason, got.Message)
	}
	for _, p := range []*corev1.Pod{first, other} {
		if got := r.read(p).Status; got.Reason == "NodePorts" {
			t.Errorf("%s: %s %s", p.Name, got.Reason, got.Message)
		}
	}
	done := r.read(first)
	done.Status.Phase = corev1.PodSucceeded
	r.look(done)
	if r.portsTaken(ask("next", 8080, 2*second)) {
		t.Error("the port of a pod that has finished is still taken")
	}
}
