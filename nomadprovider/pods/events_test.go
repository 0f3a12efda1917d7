package pods

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestChanges(t *testing.T) {
	waits := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	runs := func(second int64) corev1.ContainerState {
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(second, 0)}}
	}
	for name, c := range map[string]struct {
		was, now corev1.ContainerState
		want     []note
	}{
		"first start": {waits("ContainerCreating", ""), runs(1), []note{{"Normal", "Started", "Started container c"}}},
		"ends at once": {waits("ContainerCreating", ""), corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.Unix(1, 0)}},
			[]note{{"Normal", "Started", "Started container c"}}},
		"runs on":          {runs(1), runs(1), nil},
		"started again":    {runs(1), runs(2), []note{{"Normal", "Started", "Started container c"}}},
		"creating":         {corev1.ContainerState{}, waits("ContainerCreating", ""), nil},
		"crash loop":       {runs(1), waits("CrashLoopBackOff", "back-off 10s"), []note{{"Warning", "BackOff", "Back-off restarting failed container c"}}},
		"same crash loop":  {waits("CrashLoopBackOff", "x"), waits("CrashLoopBackOff", "x"), nil},
		"cannot be pulled": {corev1.ContainerState{}, waits("ErrImagePull", "no such host"), []note{{"Warning", "Failed", `Failed to pull image "i": no such host`}}},
		"pull back-off":    {waits("ErrImagePull", "x"), waits("ImagePullBackOff", "x"), []note{{"Normal", "BackOff", `Back-off pulling image "i"`}}},
		"bad config":       {corev1.ContainerState{}, waits("CreateContainerConfigError", "no such key"), []note{{"Warning", "Failed", "Error: no such key"}}},
	} {
		status := func(s corev1.ContainerState) *corev1.PodStatus {
			return &corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", Image: "i", State: s}}}
		}
		if got := changes(status(c.was), status(c.now)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
	// What keeps all containers waiting is said once.
	list := []corev1.ContainerStatus{{Name: "a", State: waits("CreateContainerConfigError", "m")}, {Name: "b", State: waits("CreateContainerConfigError", "m")}}
	if got := changes(&corev1.PodStatus{}, &corev1.PodStatus{ContainerStatuses: list}); len(got) != 1 {
		t.Errorf("%v", got)
	}
}
