package pods

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func TestStatusPatchIsTheDifference(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "web"}
		p.Status.Conditions = []corev1.PodCondition{{Type: "example.com/theirs", Status: corev1.ConditionTrue, Message: "keep"}}
	})
	r.follows(pod, entry("pending", tasks{"web": {State: "pending"}}))
	r.clock.Step(time.Second)
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	patches := r.patches()
	if len(patches) != 2 {
		t.Fatalf("%d patches: %v", len(patches), patches)
	}
	for i, p := range patches {
		var got struct {
			Metadata struct {
				UID         string
				Annotations map[string]string
			}
			Spec   any
			Status struct{ Conditions []map[string]any }
		}
		if err := json.Unmarshal([]byte(p), &got); err != nil {
			t.Fatal(err)
		}
		where := map[string]string{
			translate.AnnotationJob: jobID, translate.AnnotationAllocation: "a1", translate.AnnotationUI: r.nomad.URL + "/ui/allocations/a1",
		}
		if got.Metadata.UID != "u" || got.Spec != nil || !maps.Equal(got.Metadata.Annotations, []map[string]string{nil, where}[i]) {
			t.Errorf("more than the UID, the status and where it runs: %s", p)
		}
		for _, c := range got.Status.Conditions {
			if c["type"] == "example.com/theirs" {
				t.Errorf("a condition of others is written: %s", p)
			}
		}
	}
	for _, part := range []string{"startTime", "qosClass", `"Initialized"`} {
		if i := strings.Index(patches[1], part); i >= 0 && !strings.Contains(patches[1][:i], "setElementOrder") {
			t.Errorf("%s did not change: %s", part, patches[1])
		}
	}
	got := r.read(pod)
	if got.Labels["app"] != "web" || got.Status.Phase != corev1.PodRunning {
		t.Errorf("%+v", got)
	}
	found := false
	for _, c := range got.Status.Conditions {
		found = found || c.Type == "example.com/theirs" && c.Message == "keep"
	}
	if !found {
		t.Error("the condition of others is gone")
	}
	// The same again, later, is no patch.
	r.clock.Step(time.Hour)
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	if n := len(r.patches()); n != 2 {
		t.Errorf("%d patches", n)
	}
}

func TestClientOutOfSightIsToldOnce(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	for range 5 {
		r.follows(pod, entry(api.AllocClientStatusUnknown, tasks{"web": running(0, epoch)}))
		r.clock.Step(time.Second)
	}
	if n := len(r.patches()); n != 1 {
		t.Errorf("%d patches", n)
	}
}

func TestReportTrouble(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for _, c := range []struct {
		err    error
		inView bool
		fails  bool
	}{
		{apierrors.NewNotFound(pods, "p"), true, false},
		{apierrors.NewConflict(pods, "p", errors.New("UID")), false, false}, // a later pod of that name
		{apierrors.NewConflict(pods, "p", errors.New("UID")), true, true},
		{apierrors.NewForbidden(pods, "p", errors.New("no")), true, true},
		{apierrors.NewTimeoutError("slow", 1), true, true},
	} {
		r := newRoom(t)
		pod := r.pod(nil)
		if !c.inView {
			if err := r.informers[0].GetIndexer().Delete(pod); err != nil {
				t.Fatal(err)
			}
		}
		r.kube.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
		err := r.report(ctx, pod, translate.Status(pod, nil, r.facts(pod, nil, "", nil)))
		if (err != nil) != c.fails {
			t.Errorf("%v: error %v", c.err, err)
		}
		r.noEvent() // of what was not told
	}
}

// TestRun takes a pod through its life by what comes from both sides.
func TestRun(t *testing.T) {
	r := newRoom(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}}
	pod.Spec = corev1.PodSpec{NodeName: "n", RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "web", Image: "img"}}}
	pod.Status.Phase = corev1.PodPending
	done := make(chan error, 1)
	go func() { done <- r.Run(t.Context()) }()
	if _, err := r.kube.CoreV1().Pods("ns").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var asked []string
	until := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not seen: %s; asked %v", what, asked)
			}
			asked = append(asked, r.nomad.take()...)
		}
	}
	has := func(want string) func() bool {
		return func() bool { return strings.Contains(strings.Join(asked, "\n"), want) }
	}
	phase := func(want corev1.PodPhase) func() bool {
		return func() bool {
			got, err := r.kube.CoreV1().Pods("ns").Get(ctx, "p", metav1.GetOptions{})
			return err == nil && got.Status.Phase == want
		}
	}
	until("the registration", has(register))
	r.nomad.send(api.TopicJob, jobID, 21, map[string]any{"ID": jobID, "Name": "ns/p", "Namespace": "default", "CreateIndex": 20, "ModifyIndex": 21})
	alloc := func(index uint64, status string, ts *api.TaskState) {
		r.nomad.send(api.TopicAllocation, "a1", index, map[string]any{
			"ID": "a1", "JobID": jobID, "CreateIndex": 22, "ModifyIndex": index, "ClientStatus": status, "DesiredStatus": "run", "TaskStates": tasks{"web": ts},
		})
	}
	alloc(22, "running", running(0, epoch))
	until("Running", phase(corev1.PodRunning))
	if found, a, err := r.Find("n", "ns", "p"); err != nil || found.UID != "u" || a.ID != "a1" || len(r.Pods("n")) != 1 || len(r.Pods("m")) != 0 {
		t.Errorf("%v %v %v", found, a, err)
	}
	if _, _, err := r.Find("n", "ns", "q"); err == nil {
		t.Error("a pod that is not there is found")
	}
	alloc(23, "complete", ended(0, epoch, epoch.Add(time.Second)))
	until("Succeeded", phase(corev1.PodSucceeded))
	if err := r.kube.CoreV1().Pods("ns").Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("the purge", has("DELETE job/"+jobID+" purge"))
	if n := strings.Count(strings.Join(asked, "\n"), "PUT jobs"); n != 1 {
		t.Errorf("%d registrations", n)
	}
	if n := len(r.patches()); n > 3 {
		t.Errorf("%d patches: %v", n, r.patches())
	}
}

func TestRunEndsWhileNomadIsAway(t *testing.T) {
	r := newRoom(t)
	r.nomad.answer("GET jobs", http.StatusInternalServerError, "No cluster leader")
	done := make(chan error, 1)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	go func() { done <- r.Run(short) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * time.Second):
		t.Error("it does not end with its context")
	}
}

func TestVisibleServices(t *testing.T) {
	r := newRoom(t)
	add := func(ns, name, ip string) {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip}}
		if err := r.factory.Core().V1().Services().Informer().GetIndexer().Add(svc); err != nil {
			t.Fatal(err)
		}
	}
	add("default", "kubernetes", "10.0.0.1")
	add("default", "other", "10.0.0.2")
	add("ns", "z", "10.0.0.3")
	add("ns", "a", "10.0.0.4")
	add("ns", "headless", corev1.ClusterIPNone)
	add("ns", "external", "")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}
	for _, c := range []struct {
		links *bool
		want  string
	}{{nil, "ns/a default/kubernetes ns/z"}, {new(true), "ns/a default/kubernetes ns/z"}, {new(bool), "default/kubernetes"}} {
		pod.Spec.EnableServiceLinks = c.links
		list, err := r.visibleServices(pod)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for i := range list {
			names = append(names, list[i].Namespace+"/"+list[i].Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}
