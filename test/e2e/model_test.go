package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// script is how a container of a random pod ends, run after run; when the list
// is through it runs on.
type script struct {
	name  string
	codes []int
}

// play is a random pod and what the kubelet's rules make of it: a model of
// pkg/kubelet/kuberuntime (computePodActions) and kubelet_pods.go (getPhase).
type play struct {
	policy     corev1.RestartPolicy
	inits      []script
	mains      []script
	phase      corev1.PodPhase
	containers map[string]outcome
}

// outcome is a container's last state. runs is how often it has run; 0 for one
// whose turn never came.
type outcome struct {
	running bool
	code    int
	runs    int
}

// randomPlay makes a pod of at most two restarts a container, since the third
// would take the kubelet's 20 s of back-off.
func randomPlay(r *rand.Rand) play {
	p := play{
		policy:     []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[r.IntN(3)],
		containers: map[string]outcome{},
	}
	codes := func(most int) (out []int) {
		for range r.IntN(most + 1) {
			out = append(out, []int{0, 1, 42}[r.IntN(3)])
		}
		return out
	}
	for i := range r.IntN(3) {
		// An init container ends well, at the latest in its second run.
		c := codes(1)
		if len(c) == 0 || c[0] != 0 {
			c = append(c, 0)
		}
		p.inits = append(p.inits, script{fmt.Sprintf("i%d", i), c})
	}
	for i := range 1 + r.IntN(3) {
		p.mains = append(p.mains, script{fmt.Sprintf("m%d", i), codes(2)})
	}
	p.predict()
	return p
}

// run plays a script until its container is not started again.
func (s script) run(again func(code int) bool) outcome {
	for i, code := range s.codes {
		if !again(code) {
			return outcome{code: code, runs: i + 1}
		}
	}
	return outcome{running: true, runs: len(s.codes) + 1}
}

func (p *play) predict() {
	for _, s := range p.inits {
		// Always is OnFailure for init containers.
		o := s.run(func(code int) bool { return code != 0 && p.policy != corev1.RestartPolicyNever })
		p.containers[s.name] = o
		if o.code != 0 {
			p.phase = corev1.PodFailed
			return
		}
	}
	running, failed := false, false
	for _, s := range p.mains {
		o := s.run(func(code int) bool {
			return p.policy == corev1.RestartPolicyAlways || p.policy == corev1.RestartPolicyOnFailure && code != 0
		})
		p.containers[s.name] = o
		running, failed = running || o.running, failed || o.code != 0
	}
	switch {
	case running:
		p.phase = corev1.PodRunning
	case failed:
		p.phase = corev1.PodFailed
	default:
		p.phase = corev1.PodSucceeded
	}
}

// shell counts a run in the diary before it ends as the script says.
func (s script) shell() string {
	var cases strings.Builder
	for i, code := range s.codes {
		fmt.Fprintf(&cases, "%d) sleep 0.3; exit %d;; ", i, code)
	}
	return fmt.Sprintf(`f=/diary/%s; n=$(cat $f 2>/dev/null || echo 0); echo $((n+1)) > $f; case $n in %s*) trap 'exit 0' TERM; while :; do sleep 0.2; done;; esac`,
		s.name, cases.String())
}

func (p *play) pod(name string, mount option) *corev1.Pod {
	return pod(name, "", restart(p.policy), func(out *corev1.Pod) {
		out.Spec.Containers = nil
		for _, s := range p.inits {
			out.Spec.InitContainers = append(out.Spec.InitContainers, container(s.name, s.shell()))
		}
		for _, s := range p.mains {
			out.Spec.Containers = append(out.Spec.Containers, container(s.name, s.shell()))
		}
	}, mount)
}

// reached says how a pod differs from what was predicted, "" when it does not.
func (p *play) reached(pod *corev1.Pod) string {
	if pod.Status.Phase != p.phase {
		return fmt.Sprintf("phase %s, want %s", pod.Status.Phase, p.phase)
	}
	for name, want := range p.containers {
		st := status(pod, name)
		switch t := st.State.Terminated; {
		case want.running != (st.State.Running != nil):
			return fmt.Sprintf("container %s: running %v, want %v", name, !want.running, want.running)
		case !want.running && (t == nil || int(t.ExitCode) != want.code):
			return fmt.Sprintf("container %s is %s, want exit code %d", name, st.State.String(), want.code)
		case int(st.RestartCount) != want.runs-1:
			return fmt.Sprintf("container %s: restartCount %d, want %d", name, st.RestartCount, want.runs-1)
		}
	}
	return ""
}

func (p *play) String() string {
	return fmt.Sprintf("%s init %v main %v", p.policy, p.inits, p.mains)
}

// verify waits for what was predicted and compares it with what really ran.
func (p *play) verify(t *testing.T, h *hybrid, pod *corev1.Pod, dir string, limit time.Duration) {
	t.Helper()
	counts := map[string]int32{}
	last := ""
	await(t, h.kube, pod, limit, "as the kubelet would have it: "+p.String(), func(got *corev1.Pod) bool {
		for name := range p.containers {
			if n := status(got, name).RestartCount; n < counts[name] {
				t.Errorf("pod %s: restartCount of %s went from %d to %d", pod.Name, name, counts[name], n)
			} else {
				counts[name] = n
			}
		}
		last = p.reached(got)
		return last == ""
	})
	for _, s := range append(append([]script{}, p.inits...), p.mains...) {
		// On a busy machine a container that runs may not have come to its first line.
		eventually(t, 30*time.Second, fmt.Sprintf("pod %s (%s): runs of container %s", pod.Name, p, s.name), func() error {
			data, _ := os.ReadFile(filepath.Join(dir, s.name)) // none: it never ran
			if got, want := strings.TrimSpace(string(data)), p.containers[s.name].runs; got != fmt.Sprint(want) && !(got == "" && want == 0) {
				return fmt.Errorf("%q, want %d", got, want)
			}
			return nil
		})
	}
}

// stage is a set of random pods.
type stage struct {
	plays []play
	pods  []*corev1.Pod
	dirs  []string
}

func newStage(t *testing.T, h *hybrid, ns string, r *rand.Rand, n int) *stage {
	t.Helper()
	s := &stage{}
	for i := range n {
		p := randomPlay(r)
		dir, mount := diary(t)
		s.plays, s.dirs = append(s.plays, p), append(s.dirs, dir)
		s.pods = append(s.pods, create(t, h.kube, ns, p.pod(fmt.Sprintf("play-%d", i), mount)))
	}
	return s
}

func (s *stage) verify(t *testing.T, h *hybrid, limit time.Duration) {
	t.Helper()
	for i := range s.plays {
		s.plays[i].verify(t, h, s.pods[i], s.dirs[i], limit)
	}
}

// seed is fixed, so that a failure can be repeated; $E2E_SEED tries another.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := uint64(20261125)
	if s := os.Getenv("E2E_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal("E2E_SEED:", err)
		}
	}
	t.Logf("seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// Random pods with random exits end as a model of the kubelet's rules says, each
// container having run just as often.
func TestRandomPods(t *testing.T) {
	t.Parallel()
	h := &hybrid{Cluster: cluster, kube: kube, nomad: nomad}
	newStage(t, h, namespace(t, kube), seed(t), 14).verify(t, h, 240*time.Second)
}

// What is killed under running pods loses none, doubles none, and restarts none
// that need not be. Nomad's agent is server and client in one here, and the
// containers live on without it.
func TestChaos(t *testing.T) {
	h := newHybrid(t, ports()+200, func(o *devcluster.Options) {
		o.NoDocker, o.CacheDir = false, ""
		o.Configure = allowDiary
	})
	r := seed(t)
	s := newStage(t, h, namespace(t, h.kube), r, 10)
	victims := []string{devcluster.NomadKubelet, devcluster.Nomad, devcluster.APIServer}
	for range 5 {
		victim := victims[r.IntN(len(victims))]
		t.Log("kill", victim)
		h.kill(t, victim)
		pause(t, time.Duration(r.IntN(3000))*time.Millisecond)
		h.start(t, victim)
		pause(t, time.Duration(r.IntN(4000))*time.Millisecond)
	}
	s.verify(t, h, 300*time.Second)
	for _, p := range s.pods {
		allocs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
		if err != nil || len(allocs) != 1 {
			t.Errorf("pod %s has %d allocations: %v", p.Name, len(allocs), err)
		}
		if got, err := h.kube.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{}); err != nil || got.UID != p.UID {
			t.Errorf("pod %s: %v", p.Name, err)
		}
	}
}

// pause lets the pods go on for a while: how long is part of the experiment.
func pause(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
