package pods

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// filesRoom has a companion image, a ConfigMap of one key, and a pod that
// mounts it; got are the lists that its companion was handed.
func filesRoom(t *testing.T) (r *room, pod *corev1.Pod, got *[]string) {
	r = newRoom(t)
	r.companionImage()
	r.configMap("1")
	pod = r.pod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	})
	got = new([]string)
	r.run = func(c taskexec.Command) (int, error) {
		*got = append(*got, list(t, c))
		_, err := fmt.Fprintln(c.Out, companion.AnswerDone)
		return 0, err
	}
	return r, pod, got
}

func (r *room) companionImage() {
	c := config.Config{VirtualNodes: []config.VirtualNode{{Name: "n", CompanionImage: "companion"}}}
	c.Complete()
	r.nodes["n"] = testNode{profile: config.Profile(c.VirtualNodes[0])}
}

func (r *room) configMap(value string) {
	r.t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "ns"}, Data: map[string]string{"key": value}}
	_, err := r.kube.CoreV1().ConfigMaps("ns").Create(r.t.Context(), cm, metav1.CreateOptions{})
	if err != nil {
		_, err = r.kube.CoreV1().ConfigMaps("ns").Update(r.t.Context(), cm, metav1.UpdateOptions{})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// list reads what the companion is handed: the files as name=content.
func list(t *testing.T, c taskexec.Command) string {
	t.Helper()
	if c.Task != translate.CompanionTask {
		t.Errorf("run in task %s", c.Task)
	}
	var out []string
	for s := bufio.NewScanner(c.In); s.Scan(); {
		var e companion.Entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if e.File != "" {
			out = append(out, e.File+"="+string(e.Data))
		}
	}
	return strings.Join(out, " ")
}

func filesEntry(since time.Time, web string) allocs.Entry {
	e := entry("pending", tasks{"web": {State: web}, translate.CompanionTask: running(0, since)})
	if web == "running" {
		e.Allocs[0].TaskStates["web"].StartedAt = epoch
	}
	return e
}

func TestFilesComeBeforeTheContainers(t *testing.T) {
	r, pod, got := filesRoom(t)
	r.awaitRead(pod)
	waiting := entry("pending", tasks{"web": {State: "pending"}, translate.CompanionTask: {State: "pending"}})
	r.follows(pod, waiting)
	r.asked() // no gate is opened yet
	r.follows(pod, filesEntry(epoch, "pending"))
	r.asked("PUT " + gate("web") + " open")
	r.follows(pod, filesEntry(epoch, "running"))
	r.asked()
	if len(*got) != 1 || (*got)[0] != "key=1" {
		t.Errorf("handed over: %q", *got)
	}
}

func TestFilesFollowTheirObjects(t *testing.T) {
	r, pod, got := filesRoom(t)
	r.awaitRead(pod)
	e := filesEntry(epoch, "running")
	r.follows(pod, e)
	r.configMap("2")
	r.next("the object has changed")
	for range 2 {
		r.follows(pod, e)
	}
	// The companion has started again: what it had may be lost.
	r.follows(pod, filesEntry(epoch.Add(second), "running"))
	// Another self does not know what was handed over.
	r.restart()
	r.companionImage()
	r.awaitRead(pod)
	r.follows(pod, filesEntry(epoch.Add(second), "running"))
	if want := "key=1|key=2|key=2|key=2"; strings.Join(*got, "|") != want {
		t.Errorf("handed over %q, want %q", *got, want)
	}
	r.asked()
}

func TestFilesThatCannotBeHandedOver(t *testing.T) {
	r, pod, _ := filesRoom(t)
	r.awaitRead(pod)
	calls := 0
	var answer string
	var fault error
	r.run = func(c taskexec.Command) (int, error) {
		calls++
		_, _ = io.Copy(io.Discard, c.In)
		_, err := io.WriteString(c.Out, answer)
		return 0, errors.Join(err, fault)
	}
	e := filesEntry(epoch, "pending")
	for _, step := range []struct {
		answer string
		fault  error
		calls  int
		event  string
	}{
		{"", nil, companionTries, "no answer"},
		{"", errors.New("client is away"), companionTries, "client is away"},
		{companion.AnswerFailed + "no space left\n", nil, 1, "no space left"},
	} {
		calls, answer, fault = 0, step.answer, step.fault
		for range 2 {
			if again := r.follows(pod, e); again != filesRetry {
				t.Errorf("%s: look again in %s", step.event, again)
			}
		}
		if calls != 2*step.calls {
			t.Errorf("%s: %d calls", step.event, calls)
		}
		if got := <-r.events.Events; !strings.Contains(got, step.event) || !strings.Contains(got, reasonFailedMount) {
			t.Errorf("event %q, want %q", got, step.event)
		}
		r.noEvent() // once
		r.asked()   // and the gate stays closed
	}
}

func TestCompanionThatDoesNotStart(t *testing.T) {
	r, pod, _ := filesRoom(t)
	r.awaitRead(pod)
	e := entry("pending", tasks{"web": {State: "pending"}, translate.CompanionTask: unstarted(1, epoch)})
	for range 2 {
		r.follows(pod, e)
	}
	if got := <-r.events.Events; !strings.Contains(got, "companionImage") {
		t.Errorf("event %q", got)
	}
	r.noEvent()
}
