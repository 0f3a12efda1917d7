package e2e

import (
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// witness watches the pods of a namespace through all outages and remembers what
// nobody may ever see of a pod.
type witness struct {
	mu   sync.Mutex
	seen []string
}

func observe(t *testing.T, k kubernetes.Interface, ns string) *witness {
	t.Helper()
	w := &witness{}
	factory := informers.NewSharedInformerFactoryWithOptions(k, 0, informers.WithNamespace(ns))
	inf := factory.Core().V1().Pods().Informer()
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(old, x any) { w.look(old.(*corev1.Pod), x.(*corev1.Pod)) }})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	return w
}

// verify fails the test with all that was seen.
func (w *witness) verify(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range w.seen {
		t.Error(what)
	}
}

func (w *witness) look(old, now *corev1.Pod) {
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	if old.UID != now.UID {
		add("another pod took its place")
	}
	if was, is := translate.AllocID(&old.Status), translate.AllocID(&now.Status); was != "" && was != is {
		add("its allocation %s became %q", was, is)
	}
	if was, is := old.Status.Phase, now.Status.Phase; was != is && (is == corev1.PodPending && was != "" || was == corev1.PodFailed || was == corev1.PodSucceeded) {
		add("its phase went from %s to %s", was, is)
	}
	for _, list := range [][]corev1.ContainerStatus{old.Status.InitContainerStatuses, old.Status.ContainerStatuses} {
		for i := range list {
			if was, is := list[i].RestartCount, status(now, list[i].Name).RestartCount; is < was {
				add("the restartCount of container %s went from %d to %d", list[i].Name, was, is)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range bad {
		w.seen = append(w.seen, "pod "+now.Name+": "+what)
	}
}
