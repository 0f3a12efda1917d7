package pods

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// awaitLimit bounds the wait for what puts a pod into the queue.
const awaitLimit = 10 * time.Second

// next takes the next pod from the queue, which what is awaited puts there.
func (r *room) next(what string) types.UID {
	r.t.Helper()
	defer time.AfterFunc(awaitLimit, r.queue.ShutDown).Stop()
	uid, quit := r.queue.Get()
	if quit {
		r.t.Fatalf("nothing put a pod into the queue: %s", what)
	}
	r.queue.Done(uid)
	return uid
}

// until waits for what puts a pod into the queue each time when it comes nearer, as
// all that is read of Kubernetes' objects does.
func (r *room) until(what string, cond func() bool) {
	r.t.Helper()
	for !cond() {
		r.next(what)
	}
}

// woken waits until the pod is put into the queue.
func (r *room) woken() {
	r.t.Helper()
	if uid := r.next("the pod is woken"); uid != "u" {
		r.t.Errorf("woken for %s", uid)
	}
}

// awaitRead waits until the objects that the pod names have been read.
func (r *room) awaitRead(pod *corev1.Pod) {
	r.t.Helper()
	r.until("the pod's objects are read", func() bool { return r.objects.Watch(r.life, pod) })
}
