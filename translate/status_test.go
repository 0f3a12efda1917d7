package translate

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The tests below describe a pod by its containers, its allocation by its
// tasks, and the expected status in one line per container.

var statusNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// at is so many seconds after the pod's start.
func at(seconds float64) time.Time {
	return statusNow.Add(-time.Hour + time.Duration(seconds*float64(time.Second)))
}

func event(kind string, seconds float64, details ...string) *api.TaskEvent {
	e := &api.TaskEvent{Type: kind, Time: at(seconds).UnixNano(), Details: map[string]string{}}
	for i := 0; i+1 < len(details); i += 2 {
		e.Details[details[i]] = details[i+1]
	}
	return e
}

func told(kind string, seconds float64, message string) *api.TaskEvent {
	e := event(kind, seconds)
	e.DisplayMessage = message
	return e
}

func exit(code int, seconds float64) *api.TaskEvent {
	return event(api.TaskTerminated, seconds, "exit_code", fmt.Sprint(code))
}

// task makes a state; started is -1 for one that never ran.
func task(state string, restarts uint64, started float64, events ...*api.TaskEvent) *api.TaskState {
	ts := &api.TaskState{State: state, Restarts: restarts, Events: events}
	if started >= 0 {
		ts.StartedAt = at(started)
	}
	return ts
}

func allocOf(status string, tasks map[string]*api.TaskState) *api.Allocation {
	return &api.Allocation{ID: "a1", ClientStatus: status, TaskStates: tasks}
}

type podOption func(*corev1.Pod)

func policy(p corev1.RestartPolicy) podOption {
	return func(pod *corev1.Pod) { pod.Spec.RestartPolicy = p }
}

func inits(names ...string) podOption {
	return func(pod *corev1.Pod) {
		for _, n := range names {
			c := corev1.Container{Name: strings.TrimPrefix(n, "+"), Image: "img"}
			if strings.HasPrefix(n, "+") {
				c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
			}
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
		}
	}
}

func mains(names ...string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Containers = nil
		for _, n := range names {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: n, Image: "img"})
		}
	}
}

func statusPod(opts ...podOption) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Generation: 3}}
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Status.Phase = corev1.PodPending
	pod.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(at(-1))},
		{Type: "example.com/theirs", Status: corev1.ConditionUnknown, Message: "keep", LastTransitionTime: metav1.NewTime(at(-1))},
	}
	mains("web")(pod)
	for _, o := range opts {
		o(pod)
	}
	return pod
}

// line puts a container status into a word or two.
func line(st *corev1.ContainerStatus) string {
	var b strings.Builder
	b.WriteString(st.Name + ":")
	switch s := st.State; {
	case s.Running != nil:
		b.WriteString("running")
	case s.Terminated != nil:
		fmt.Fprintf(&b, "%s(%d)", s.Terminated.Reason, s.Terminated.ExitCode)
	case s.Waiting != nil:
		b.WriteString(s.Waiting.Reason)
	}
	if st.Ready {
		b.WriteString(" ready")
	}
	if st.RestartCount > 0 {
		fmt.Fprintf(&b, " x%d", st.RestartCount)
	}
	if t := st.LastTerminationState.Terminated; t != nil {
		fmt.Fprintf(&b, " last=%s(%d)", t.Reason, t.ExitCode)
	}
	return b.String()
}

func summary(s *corev1.PodStatus) string {
	parts := []string{string(s.Phase)}
	if s.Reason != "" {
		parts[0] += "/" + s.Reason
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			parts = append(parts, line(&list[i]))
		}
	}
	return strings.Join(parts, "; ")
}

func condition(s *corev1.PodStatus, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

// conditionLine is the kubelet's conditions, such as "Ready=False:PodFailed".
func conditionLine(s *corev1.PodStatus) string {
	var parts []string
	for _, t := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		c := condition(s, t)
		if c == nil {
			parts = append(parts, string(t)+"=none")
			continue
		}
		p := string(t) + "=" + string(c.Status)
		if c.Reason != "" {
			p += ":" + c.Reason
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, " ")
}

// statusFacts are those of every row.
func statusFacts(now time.Time) Facts {
	return Facts{Now: now, Addresses: Addresses{HostIP: "192.0.2.1"}, Backoff: map[string]time.Duration{"web": 20 * time.Second}}
}

// stable fails unless the status, once reported and read back, asks for no
// other one later: anything else is patches without end. It also sees to it
// that the inputs are not changed.
func stable(t *testing.T, pod *corev1.Pod, alloc *api.Allocation, f Facts) corev1.PodStatus {
	t.Helper()
	compute := func(pod *corev1.Pod, f Facts) corev1.PodStatus {
		before, was := pod.DeepCopy(), dump(t, alloc)
		s := Status(pod, alloc, f)
		if alloc != nil && alloc.ClientTerminalStatus() {
			s = Final(pod, s, f)
		}
		if d := cmp.Diff(before, pod); d != "" {
			t.Errorf("the pod was changed:\n%s", d)
		}
		if dump(t, alloc) != was {
			t.Errorf("the allocation was changed")
		}
		return s
	}
	first := compute(pod, f)
	again := pod.DeepCopy()
	again.Status = *first.DeepCopy()
	f.Now = f.Now.Add(7 * time.Second)
	second := compute(again, f)
	if !equality.Semantic.DeepEqual(first, second) {
		t.Errorf("the status does not come to rest:\n%s", cmp.Diff(first, second))
	}
	// What was there of others stays as it was.
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, "example.com/theirs"} {
		if d := cmp.Diff(condition(&pod.Status, kind), condition(&first, kind)); d != "" {
			t.Errorf("condition %s was changed:\n%s", kind, d)
		}
	}
	return first
}

func dump(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

type statusRow struct {
	name   string
	pod    *corev1.Pod
	status string // the allocation's; empty: no allocation
	tasks  map[string]*api.TaskState
	facts  func(*Facts)
	want   string
	conds  string
}

func (r *statusRow) run(t *testing.T) {
	var alloc *api.Allocation
	if r.status != "" {
		alloc = allocOf(r.status, r.tasks)
	}
	f := statusFacts(statusNow)
	if r.facts != nil {
		r.facts(&f)
	}
	s := stable(t, r.pod, alloc, f)
	if got := summary(&s); got != r.want {
		t.Errorf("got  %s\nwant %s", got, r.want)
	}
	if got := conditionLine(&s); r.conds != "" && got != r.conds {
		t.Errorf("conditions\ngot  %s\nwant %s", got, r.conds)
	}
}

const (
	condsNone    = "PodReadyToStartContainers=False Initialized=True ContainersReady=False:ContainersNotReady Ready=False:ContainersNotReady"
	condsInit    = "PodReadyToStartContainers=True Initialized=False:ContainersNotInitialized ContainersReady=False:ContainersNotReady Ready=False:ContainersNotReady"
	condsUnready = "PodReadyToStartContainers=True Initialized=True ContainersReady=False:ContainersNotReady Ready=False:ContainersNotReady"
	condsReady   = "PodReadyToStartContainers=True Initialized=True ContainersReady=True Ready=True"
	condsDone    = "PodReadyToStartContainers=False Initialized=True ContainersReady=False:PodCompleted Ready=False:PodCompleted"
	condsFailed  = "PodReadyToStartContainers=False Initialized=True ContainersReady=False:PodFailed Ready=False:PodFailed"
)

// A container whose probes are run is started and ready as they say; a sidecar
// that has not started leaves the pod uninitialized.
func TestStatusByProbes(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "side", RestartPolicy: &always}},
		Containers:     []corev1.Container{{Name: "web"}, {Name: "plain"}},
	}}
	up := func() *api.TaskState { return &api.TaskState{State: "running", StartedAt: now} }
	alloc := &api.Allocation{ID: "a", ClientStatus: "running", TaskStates: map[string]*api.TaskState{"side": up()}}
	f := statusFacts(now)
	f.Probed = map[string]Probed{"side": {Ready: true}}
	s := Status(pod, alloc, f)
	if st := s.InitContainerStatuses[0]; *st.Started || st.Ready || s.Phase != corev1.PodPending || conditionStatus(&s, corev1.PodInitialized) != corev1.ConditionFalse {
		t.Errorf("not started: %+v, phase %s", st, s.Phase)
	}
	alloc.TaskStates["web"], alloc.TaskStates["plain"] = up(), up()
	f.Probed = map[string]Probed{"side": {Started: true, Ready: true}, "web": {Started: true}}
	s = Status(pod, alloc, f)
	if st := s.ContainerStatuses[0]; !*st.Started || st.Ready || !s.ContainerStatuses[1].Ready || s.Phase != corev1.PodRunning ||
		conditionStatus(&s, corev1.PodInitialized) != corev1.ConditionTrue || conditionStatus(&s, corev1.PodReady) != corev1.ConditionFalse {
		t.Errorf("not ready: %+v", s)
	}
	f.Probed["web"] = Probed{Started: true, Ready: true}
	if s = Status(pod, alloc, f); conditionStatus(&s, corev1.PodReady) != corev1.ConditionTrue {
		t.Errorf("ready: %+v", s.Conditions)
	}
}

func conditionStatus(s *corev1.PodStatus, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range s.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}
