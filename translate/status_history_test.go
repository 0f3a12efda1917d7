package translate

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// life takes a pod through what Nomad tells one after the other.
type life struct {
	t   *testing.T
	pod *corev1.Pod
	now time.Time
}

func (l *life) see(status string, ts tasks) *corev1.PodStatus {
	l.t.Helper()
	var alloc *api.Allocation
	if status != "" {
		alloc = allocOf(status, ts)
	}
	l.now = l.now.Add(time.Second)
	l.pod = l.pod.DeepCopy()
	l.pod.Status = stable(l.t, l.pod, alloc, statusFacts(l.now))
	return &l.pod.Status
}

func (l *life) want(want string) {
	l.t.Helper()
	if got := summary(&l.pod.Status); got != want {
		l.t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestStatusRemembers(t *testing.T) {
	l := &life{t, statusPod(), statusNow}
	start := l.see("", nil).StartTime.DeepCopy()
	l.see("running", tasks{"web": task("running", 0, 1)})
	l.see("pending", tasks{"web": task("pending", 1, 1, event(api.TaskStarted, 1), exit(3, 2))})
	l.want("Running; web:Error(3)")
	// Nomad's ten events have rolled over: the exit is not among them any more.
	l.see("running", tasks{"web": task("running", 1, 4, event(api.TaskSignaling, 5))})
	l.want("Running; web:running ready x1 last=Error(3)")
	l.see("running", tasks{"web": task("running", 1, 4)})
	l.want("Running; web:running ready x1 last=Error(3)")
	// A count never goes back.
	l.see("running", tasks{"web": task("running", 0, 4)})
	l.want("Running; web:running ready x1 last=Error(3)")
	// Nomad does not speak of the allocation.
	l.see("", nil)
	l.want("Running; web:running ready x1 last=Error(3)")
	l.see("lost", tasks{"web": task("running", 1, 4)})
	l.want("Failed; web:ContainerStatusUnknown(137) x1 last=Error(3)")
	was := l.pod.Status.DeepCopy()
	if !l.pod.Status.StartTime.Equal(start) {
		t.Errorf("the start time moved from %s to %s", start, l.pod.Status.StartTime)
	}
	// Whatever comes later, final stays final.
	for _, ts := range []tasks{{"web": task("running", 9, 50)}, {"web": task("dead", 9, 50, exit(0, 60))}, {}} {
		for _, status := range []string{"running", "complete", "failed", ""} {
			l.see(status, ts)
			if !equality.Semantic.DeepEqual(*was, l.pod.Status) {
				t.Fatalf("a final status changed:\n%s", cmp.Diff(was, &l.pod.Status))
			}
		}
	}
}

func TestStatusKeepsFirstToldExit(t *testing.T) {
	l := &life{t, statusPod(policy("Never"), mains("web", "b")), statusNow}
	running := task("running", 0, 0.9)
	l.see("running", tasks{"web": task("running", 0, 0.9), "b": running})
	ran := l.pod.Status.ContainerStatuses[0].State.Running
	// The start's event and its time lie in two seconds.
	l.see("running", tasks{"web": task("dead", 0, 0.9, event(api.TaskStarted, 1.01), exit(7, 2)), "b": running})
	ended := l.pod.Status.ContainerStatuses[0].State.Terminated
	if !ran.StartedAt.Equal(&ended.StartedAt) {
		t.Errorf("one run started at %s and at %s", ran.StartedAt, ended.StartedAt)
	}
	l.see("running", tasks{"web": task("dead", 0, 0.9, told("Killing", 9, "Sent interrupt")), "b": running})
	l.want("Running; web:Error(7); b:running ready")
}

func TestStatusCountsOnlyRise(t *testing.T) {
	l := &life{t, statusPod(), statusNow}
	var last int32
	for i := range uint64(30) {
		start := float64(10 * i)
		for _, ts := range []*api.TaskState{
			task("running", i, start, event(api.TaskStarted, start)),
			task("pending", i+1, start, event(api.TaskStarted, start), exit(1, start+1), event(api.TaskRestarting, start+1)),
		} {
			s := l.see("running", tasks{"web": ts})
			n := s.ContainerStatuses[0].RestartCount
			if n < last || uint64(n) != i {
				t.Fatalf("in run %d the count is %d after %d", i, n, last)
			}
			last = n
			if s.Phase != corev1.PodRunning {
				t.Fatalf("in run %d the phase is %s", i, s.Phase)
			}
		}
	}
}

func TestStatusAddresses(t *testing.T) {
	net := &api.AllocNetworkStatus{Address: "10.1.0.2", AddressIPv6: "fd00::2"}
	get := func(pod *corev1.Pod, n *api.AllocNetworkStatus, f Facts) *corev1.PodStatus {
		alloc := allocOf("running", tasks{"web": task("running", 0, 1)})
		alloc.NetworkStatus = n
		s := stable(t, pod, alloc, f)
		return &s
	}
	check := func(what string, s *corev1.PodStatus, host string, ips ...string) {
		t.Helper()
		var got []string
		for _, ip := range s.PodIPs {
			got = append(got, ip.IP)
		}
		if s.HostIP != host || !equality.Semantic.DeepEqual(got, ips) || len(ips) > 0 && s.PodIP != ips[0] {
			t.Errorf("%s: host %q, pod %q %v; want %q %v", what, s.HostIP, s.PodIP, got, host, ips)
		}
	}
	f := statusFacts(statusNow)
	s := get(statusPod(), net, f)
	check("bridge", s, "192.0.2.1", "10.1.0.2", "fd00::2")
	known := statusPod()
	known.Status = *s
	nowhere := f
	nowhere.HostIP = ""
	check("not told any more", get(known, nil, nowhere), "192.0.2.1", "10.1.0.2", "fd00::2")
	check("no address yet", get(statusPod(), nil, f), "192.0.2.1")
	hosted := statusPod(func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	check("hostNetwork", get(hosted, nil, f), "192.0.2.1", "192.0.2.1")
	hosted.Status = *get(hosted, nil, f)
	check("hostNetwork, client not known now", get(hosted, nil, nowhere), "192.0.2.1", "192.0.2.1")
	all := f
	all.HostNetwork = true
	check("a node whose pods have the client's network", get(statusPod(), nil, all), "192.0.2.1", "192.0.2.1")
}

func TestReadinessGates(t *testing.T) {
	const gate = "example.com/gate"
	pod := statusPod(func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: gate}}
	})
	alloc := allocOf("running", tasks{"web": task("running", 0, 1)})
	for _, status := range []corev1.ConditionStatus{"", corev1.ConditionFalse, corev1.ConditionUnknown, corev1.ConditionTrue} {
		p := pod.DeepCopy()
		if status != "" {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: gate, Status: status})
		}
		s := stable(t, p, alloc, statusFacts(statusNow))
		ready, containers := condition(&s, corev1.PodReady), condition(&s, corev1.ContainersReady)
		if containers.Status != corev1.ConditionTrue {
			t.Errorf("gate %q: ContainersReady is %s", status, containers.Status)
		}
		if want := status == corev1.ConditionTrue; (ready.Status == corev1.ConditionTrue) != want {
			t.Errorf("gate %q: Ready is %s", status, ready.Status)
		} else if !want && (ready.Reason != "ReadinessGatesNotReady" || !strings.Contains(ready.Message, gate)) {
			t.Errorf("gate %q: reason %q, message %q", status, ready.Reason, ready.Message)
		}
		if got := condition(&s, gate); (got != nil) != (status != "") {
			t.Errorf("gate %q: the gate's own condition is ours to read only: %v", status, got)
		}
	}
}

func TestUnplaced(t *testing.T) {
	f := statusFacts(statusNow)
	f.Unplaced = "1 clients without enough memory"
	pod := statusPod()
	pod.Status = stable(t, pod, nil, f)
	c := condition(&pod.Status, ConditionPlaced)
	if c == nil || c.Status != corev1.ConditionFalse || c.Reason != "Unschedulable" || c.Message != f.Unplaced {
		t.Fatalf("unplaced: %+v", c)
	}
	placed := stable(t, pod, allocOf("running", tasks{"web": task("running", 0, 1)}), statusFacts(statusNow.Add(time.Minute)))
	c = condition(&placed, ConditionPlaced)
	if c.Status != corev1.ConditionTrue || c.Message != "" || !c.LastTransitionTime.Time.Equal(statusNow.Add(time.Minute)) {
		t.Errorf("placed at last: %+v", c)
	}
	never := stable(t, statusPod(), allocOf("running", tasks{"web": task("running", 0, 1)}), statusFacts(statusNow))
	if condition(&never, ConditionPlaced) != nil {
		t.Error("a pod that found its place at once has the condition")
	}
}

func TestFailed(t *testing.T) {
	f := statusFacts(statusNow)
	s := Failed(statusPod(inits("i")), nil, "Refused", "because", f)
	if got := summary(&s); got != "Failed/Refused" || s.Message != "because" || s.StartTime == nil {
		t.Errorf("a pod that never ran: %s %q", got, s.Message)
	}
	if got, want := conditionLine(&s), "PodReadyToStartContainers=False Initialized=False:ContainersNotInitialized ContainersReady=False:PodFailed Ready=False:PodFailed"; got != want {
		t.Errorf("conditions %s, want %s", got, want)
	}
	ran := statusPod(mains("web", "b"))
	alloc := allocOf("complete", tasks{"web": task("dead", 0, 1, exit(143, 9)), "b": task("dead", 0, 1, exit(0, 9))})
	s = Failed(ran, alloc, "DeadlineExceeded", "late", f)
	if got, want := summary(&s), "Failed/DeadlineExceeded; web:Error(143); b:Completed(0)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	ran.Status = stable(t, ran, allocOf("running", tasks{"web": task("running", 0, 1), "b": task("dead", 0, 1, exit(0, 2))}), f)
	s = Failed(ran, nil, "NomadJobLost", "gone", f)
	if got, want := summary(&s), "Failed/NomadJobLost; web:ContainerStatusUnknown(137); b:Completed(0)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if conditionLine(&s) != condsFailed {
		t.Errorf("conditions %s", conditionLine(&s))
	}
}

func TestOver(t *testing.T) {
	f := statusFacts(statusNow)
	pod := statusPod(policy("Never"), inits("+s"))
	for _, r := range []struct {
		web  *api.TaskState
		want bool
	}{
		{task("running", 0, 1), false},
		{task("dead", 0, 1, exit(0, 2)), true},
		{task("pending", 1, 1, exit(1, 2)), true},
	} {
		s := Status(pod, allocOf("running", tasks{"s": task("running", 0, 1), "web": r.web}), f)
		if over(s.Phase) || Over(pod, &s) != r.want {
			t.Errorf("%s: over %v, want %v", summary(&s), Over(pod, &s), r.want)
		}
	}
}

func TestStatusBasics(t *testing.T) {
	pod := statusPod(func(p *corev1.Pod) {
		list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Mi")}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: list}
	})
	s := stable(t, pod, allocOf("running", tasks{"web": task("running", 0, 1)}), statusFacts(statusNow))
	if s.ObservedGeneration != 3 || s.QOSClass != corev1.PodQOSGuaranteed || AllocID(&s) != "a1" {
		t.Errorf("generation %d, class %s, allocation %q", s.ObservedGeneration, s.QOSClass, AllocID(&s))
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady && c.ObservedGeneration != 3 {
			t.Errorf("condition %s observed generation %d", c.Type, c.ObservedGeneration)
		}
	}
	st := s.ContainerStatuses[0]
	if st.ContainerID != "nomad://a1/web" || st.Image != "img" || !*st.Started || !st.State.Running.StartedAt.Equal(&metav1.Time{Time: at(1)}) {
		t.Errorf("container: %+v", st)
	}
	if AllocID(&corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{ContainerID: "docker://x"}}}) != "" {
		t.Error("a container of others has no allocation")
	}
}

func TestUnplacedReason(t *testing.T) {
	for _, r := range []struct {
		m    *api.AllocationMetric
		want string
	}{
		{nil, ""},
		{&api.AllocationMetric{NodePool: "gpu"}, `no client of node pool "gpu" is ready and eligible in the job's datacenters`},
		{&api.AllocationMetric{NodesEvaluated: 2}, "2 clients evaluated, none fits"},
		{&api.AllocationMetric{NodesEvaluated: 3, ConstraintFiltered: map[string]int{"${attr.kernel.name} = linux": 1}, DimensionExhausted: map[string]int{"memory": 2, "cpu": 1}},
			`1 clients filtered by constraint "${attr.kernel.name} = linux", 1 clients without enough cpu, 2 clients without enough memory`},
		{&api.AllocationMetric{NodesEvaluated: 1, QuotaExhausted: []string{"q"}}, "quota reached: q"},
	} {
		if got := UnplacedReason(r.m); got != r.want {
			t.Errorf("got %q, want %q", got, r.want)
		}
	}
}
