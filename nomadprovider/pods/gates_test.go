package pods

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const second = time.Second

// TestCrashLoop takes a container through the kubelet's schedule: at once, then
// 10 s doubling to 300 s, each held by one write and released by another.
func TestCrashLoop(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	r.asked()
	for i, pause := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
		n := uint64(i + 1)
		start := r.clock.Now()
		r.clock.Step(second)
		e := entry("pending", tasks{"web": crashed(1, n, start, r.clock.Now())})
		again := r.follows(pod, e)
		if pause == 0 {
			r.asked()
			if again != 0 {
				t.Errorf("first crash: look again in %s", again)
			}
		} else {
			r.asked("PUT " + gate("web") + " hold")
			if want := pause*second - startLatency; again != want {
				t.Errorf("crash %d: held for %s, want %s", n, again, want)
			}
			if w := r.read(pod).Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "CrashLoopBackOff" || !strings.Contains(w.Message, (pause*second).String()) {
				t.Errorf("crash %d: %+v", n, w)
			}
			r.clock.Step(again / 2)
			if left := r.follows(pod, e); left != again-again/2 {
				t.Errorf("crash %d: %s left", n, left)
			}
			r.asked()
			r.clock.Step(again)
			r.follows(pod, e)
			r.asked("DELETE " + gate("web"))
		}
		r.follows(pod, entry("running", tasks{"web": running(n, r.clock.Now())}))
		r.asked()
	}
	// It ran for ten minutes: the schedule starts over.
	start := r.clock.Now()
	r.clock.Step(10 * time.Minute)
	if again := r.follows(pod, entry("pending", tasks{"web": crashed(1, 9, start, r.clock.Now())})); again != 0 {
		t.Errorf("after ten minutes it is held for %s", again)
	}
	start = r.clock.Now()
	r.clock.Step(second)
	if again := r.follows(pod, entry("pending", tasks{"web": crashed(1, 10, start, r.clock.Now())})); again != 10*second-startLatency {
		t.Errorf("and the crash after it for %s", again)
	}
}

// A process that did not see the container before its first crash cannot know
// whether a former self held it.
func TestFirstCrashBehindOnesBack(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.follows(pod, entry("pending", tasks{"web": crashed(1, 1, epoch, epoch)}))
	r.asked("DELETE " + gate("web"))
}

func TestLostRaceLeavesNoHold(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.follows(pod, entry("pending", tasks{"web": crashed(1, 1, epoch, epoch)}))
	r.follows(pod, entry("pending", tasks{"web": crashed(1, 2, epoch, epoch)}))
	r.nomad.take()
	// It runs all the same, and crashes again: that counts.
	r.follows(pod, entry("running", tasks{"web": running(2, epoch)}))
	r.asked("DELETE " + gate("web"))
	if again := r.follows(pod, entry("pending", tasks{"web": crashed(1, 3, epoch, epoch)})); again != 20*second-startLatency {
		t.Errorf("held for %s", again)
	}
}

func TestPlainPodCostsNoWrite(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "img"})
	})
	r.follows(pod, entry("pending", tasks{"web": {State: "pending"}, "b": {State: "pending"}}))
	r.follows(pod, entry("running", tasks{"web": running(0, epoch), "b": running(0, epoch)}))
	r.follows(pod, entry("complete", tasks{"web": ended(0, epoch, epoch), "b": ended(0, epoch, epoch)}))
	r.asked()
	if got := r.read(pod).Status.Phase; got != corev1.PodSucceeded {
		t.Errorf("phase %s", got)
	}
}

func TestNeverIsParked(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "img"})
	})
	e := entry("running", tasks{"web": crashed(1, 1, epoch, epoch), "b": running(0, epoch)})
	for range 3 {
		if again := r.follows(pod, e); again != parked {
			t.Errorf("look again in %s", again)
		}
		r.clock.Step(parked + time.Hour)
	}
	r.asked("PUT " + gate("web") + " hold")
	// A new self holds it too: Nomad's delay alone does not.
	r.restart()
	r.follows(pod, e)
	r.asked("PUT " + gate("web") + " hold")
}

func TestImageFailuresCountByThemselves(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	for n, pause := range []time.Duration{0, 10, 20} {
		want := max(pause*second-startLatency, 0)
		if again := r.follows(pod, entry("pending", tasks{"web": unstarted(uint64(n+1), r.clock.Now())})); again != want {
			t.Errorf("failure %d: held for %s, want %s", n+1, again, want)
		}
	}
	r.follows(pod, entry("running", tasks{"web": running(3, epoch)}))
	if got := r.read(pod).Status.ContainerStatuses[0].RestartCount; got != 0 {
		t.Errorf("%d restarts of a container that has just started", got)
	}
	if again := r.follows(pod, entry("pending", tasks{"web": crashed(1, 4, r.clock.Now(), r.clock.Now())})); again != 0 {
		t.Errorf("the first crash is held for %s", again)
	}
	// A restart of the process in a run that was reported keeps the count.
	r.follows(pod, entry("running", tasks{"web": running(4, epoch.Add(second))}))
	r.restart()
	r.follows(pod, entry("running", tasks{"web": running(4, epoch.Add(second))}))
	if got := r.read(pod).Status.ContainerStatuses[0].RestartCount; got != 1 {
		t.Errorf("%d restarts after a restart of the process, want 1", got)
	}
}

func TestInitGatesOpenInOrder(t *testing.T) {
	r := newRoom(t)
	always := corev1.ContainerRestartPolicyAlways
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "i1", Image: "img"}, {Name: "side", Image: "img", RestartPolicy: &always}, {Name: "i3", Image: "img"}}
	})
	all := tasks{"web": {State: "pending"}, "side": {State: "pending"}, "i3": {State: "pending"}}
	step := func(changed tasks, want ...string) {
		t.Helper()
		maps.Copy(all, changed)
		e := entry("pending", all)
		r.follows(pod, e)
		r.follows(pod, e)
		r.asked(want...)
	}
	step(tasks{"i1": running(0, epoch)})
	step(tasks{"i1": crashed(1, 1, epoch, epoch)}) // not done
	step(tasks{"i1": ended(0, epoch, epoch)}, "PUT "+gate("side")+" open")
	step(tasks{"side": running(0, epoch)}, "PUT "+gate("i3")+" open")
	step(tasks{"i3": crashed(1, 2, epoch, epoch)}, "PUT "+gate("i3")+" hold")
	r.clock.Step(time.Minute)
	step(nil, "PUT "+gate("i3")+" open")
	step(tasks{"i3": ended(0, epoch, epoch)})
}

// The hold of a former self ends, whichever container it was for.
func TestFormerHoldIsReleased(t *testing.T) {
	for _, init := range []bool{false, true} {
		r := newRoom(t)
		task := "web"
		pod := r.pod(func(p *corev1.Pod) {
			if init {
				task = "i1"
				p.Spec.InitContainers = []corev1.Container{{Name: "i1", Image: "img"}}
			}
		})
		ts := tasks{"web": {State: "pending"}}
		ts[task] = crashed(1, 3, epoch, epoch)
		r.follows(pod, entry("pending", ts))
		r.asked("PUT " + gate(task) + " hold")
		r.restart()
		r.clock.Step(time.Hour) // it was away until the hold was over
		r.follows(pod, entry("pending", ts))
		r.asked("DELETE " + gate(task))
	}
}

func TestGateThatCannotBeWritten(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	e := entry("pending", tasks{"web": crashed(1, 2, epoch, epoch)})
	for _, status := range []int{http.StatusForbidden, http.StatusInternalServerError} {
		r.nomad.answer("PUT "+gate("web"), status, "no")
		if _, err := r.follow(ctx, pod, e); err == nil || !strings.Contains(err.Error(), "gate of task web") {
			t.Errorf("%d: %v", status, err)
		}
	}
	r.nomad.asIs()
	r.nomad.take()
	r.follows(pod, e)
	r.asked("PUT " + gate("web") + " hold")
}

func TestNoGatesWithoutAnAllocation(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	e := entry("failed", tasks{"web": crashed(1, 2, epoch, epoch)})
	r.follows(pod, e)
	e.Allocs = nil
	r.follows(pod, e)
	r.asked()
}
