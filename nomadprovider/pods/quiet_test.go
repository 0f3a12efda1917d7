package pods

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A start is told of after two seconds, in a burst after ten, and at once when
// there is something to tell.
func TestNotYet(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(func(*corev1.Pod) {})
	registered := func(uid types.UID) {
		r.with(uid, func(s *podState) {
			s.registered = r.clock.Now()
			r.starting[uid] = struct{}{}
		})
	}
	registered(pod.UID)
	if left := r.notYet(pod, nil, ""); left != startQuiet {
		t.Errorf("quiet for %s", left)
	}
	for i := range burst {
		registered(types.UID(fmt.Sprint(i)))
	}
	if left := r.notYet(pod, nil, ""); left != startQuietBurst {
		t.Errorf("in a burst quiet for %s", left)
	}
	if left := r.notYet(pod, newAlloc("a1", "pending", tasks{"web": {State: "pending", Restarts: 1}}), ""); left != 0 {
		t.Errorf("a crash is kept quiet for %s", left)
	}
	if len(r.starting) != burst {
		t.Errorf("%d pods start", len(r.starting))
	}
	registered(pod.UID)
	r.clock.Step(startQuietBurst + time.Second)
	if left := r.notYet(pod, nil, ""); left != 0 {
		t.Errorf("quiet for ever: %s", left)
	}
	if left := r.notYet(pod, nil, "no client fits"); left != 0 {
		t.Errorf("Nomad's refusal is kept quiet for %s", left)
	}
}
