package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
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
	policy corev1.RestartPolicy
	// waits says that the containers begin when they are told to; see [stage.begin].
	waits      bool
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

func anyPolicy(r *rand.Rand) corev1.RestartPolicy {
	return []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[r.IntN(3)]
}

// randomPlay makes a pod of at most two restarts a container, since the third
// would take the kubelet's 20 s of back-off.
func randomPlay(r *rand.Rand) play {
	p := play{policy: anyPolicy(r), containers: map[string]outcome{}}
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

// goFile is what a play that waits waits for.
const goFile = "go"

// shell counts a run in the diary before it ends as the script says.
func (s script) shell(waits bool) string {
	var cases strings.Builder
	for i, code := range s.codes {
		fmt.Fprintf(&cases, "%d) sleep 0.3; exit %d;; ", i, code)
	}
	begin := ""
	if waits {
		begin = "while [ ! -e /diary/" + goFile + " ]; do sleep 0.1; done; "
	}
	return begin + fmt.Sprintf(`f=/diary/%s; n=$(cat $f 2>/dev/null || echo 0); echo $((n+1)) > $f; case $n in %s*) %s;; esac`,
		s.name, cases.String(), idle)
}

func (p *play) pod(name string, mount option) *corev1.Pod {
	return pod(name, "", restart(p.policy), func(out *corev1.Pod) {
		out.Spec.Containers = nil
		for _, s := range p.inits {
			out.Spec.InitContainers = append(out.Spec.InitContainers, container(s.name, s.shell(p.waits)))
		}
		for _, s := range p.mains {
			out.Spec.Containers = append(out.Spec.Containers, container(s.name, s.shell(p.waits)))
		}
	}, mount)
}

// scripts are those of all containers.
func (p *play) scripts() []script { return append(append([]script{}, p.inits...), p.mains...) }

func (p *play) String() string {
	return fmt.Sprintf("%s init %v main %v waits %v", p.policy, p.inits, p.mains, p.waits)
}

// differs says how a pod differs from what was predicted, nil when it does not.
func (p *play) differs(pod *corev1.Pod) error {
	var all []error
	add := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if pod.Status.Phase != p.phase {
		add("phase %s, want %s", pod.Status.Phase, p.phase)
	}
	for _, s := range p.scripts() {
		want, ok := p.containers[s.name]
		if !ok {
			continue // its turn never comes
		}
		st := status(pod, s.name)
		switch t := st.State.Terminated; {
		case want.running != (st.State.Running != nil):
			add("container %s: running %v, want %v", s.name, !want.running, want.running)
		case !want.running && (t == nil || int(t.ExitCode) != want.code):
			add("container %s is %s, want exit code %d", s.name, st.State.String(), want.code)
		}
		if int(st.RestartCount) != want.runs-1 {
			add("container %s: restartCount %d, want %d", s.name, st.RestartCount, want.runs-1)
		}
	}
	return errors.Join(all...)
}

// ran compares what the containers wrote down with the runs that were predicted.
func (p *play) ran(dir string) error {
	var all []error
	for _, s := range p.scripts() {
		got := 0
		// No file: it never ran. An empty one is being written.
		if data, err := os.ReadFile(filepath.Join(dir, s.name)); err == nil {
			if got, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil {
				all = append(all, err)
			}
		}
		if want := p.containers[s.name].runs; got != want {
			all = append(all, fmt.Errorf("container %s ran %d times, want %d", s.name, got, want))
		}
	}
	return errors.Join(all...)
}

// verify waits for what was predicted and compares it with what really ran.
func (p *play) verify(t *testing.T, h *hybrid, pod *corev1.Pod, dir string, limit time.Duration) {
	t.Helper()
	var differs error
	defer func() {
		if differs != nil {
			t.Errorf("pod %s (%s) differs from the model:\n%v\nand in its diary:\n%v", pod.Name, p, differs, p.ran(dir))
		}
	}()
	await(t, h.kube, pod, limit, "as the kubelet would have it", func(got *corev1.Pod) bool {
		differs = p.differs(got)
		return differs == nil
	})
	// On a busy machine a container that runs may not have come to its first line.
	eventually(t, 30*time.Second, fmt.Sprintf("pod %s (%s) ran as often as its status says", pod.Name, p), func() error { return p.ran(dir) })
}

// stage is a set of random pods.
type stage struct {
	plays []play
	pods  []*corev1.Pod
	dirs  []string
}

// newStage makes n pods, of which every other waits if some are to wait.
func newStage(t *testing.T, h *hybrid, ns string, r *rand.Rand, n int, wait bool) *stage {
	t.Helper()
	s := &stage{}
	for i := range n {
		p := randomPlay(r)
		p.waits = wait && i%2 == 1
		dir, mount := diary(t)
		s.plays, s.dirs = append(s.plays, p), append(s.dirs, dir)
		s.pods = append(s.pods, create(t, h.kube, ns, p.pod(fmt.Sprintf("play-%d", i), mount)))
	}
	return s
}

// begin lets the plays begin that wait.
func (s *stage) begin(t *testing.T) {
	t.Helper()
	for _, dir := range s.dirs {
		if err := os.WriteFile(filepath.Join(dir, goFile), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// verify compares all pods with the model, for which they have limit together.
func (s *stage) verify(t *testing.T, h *hybrid, limit time.Duration) {
	t.Helper()
	end := time.Now().Add(limit)
	for i := range s.plays {
		left := max(time.Until(end), 10*time.Second)
		t.Run(s.pods[i].Name, func(t *testing.T) { s.plays[i].verify(t, h, s.pods[i], s.dirs[i], left) })
	}
}

// seed is fixed, so that a failure can be repeated; $E2E_SEED tries another.
func seed(t *testing.T) *rand.Rand {
	t.Helper()
	n := number(t, "E2E_SEED", 20261125)
	t.Logf("seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// number is that of an environment variable, or what it is without.
func number(t *testing.T, name string, without uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return without
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(name+":", err)
	}
	return n
}

// Random pods with random exits end as a model of the kubelet's rules says, each
// container having run just as often.
func TestRandomPods(t *testing.T) {
	t.Parallel()
	h := &hybrid{Cluster: cluster, kube: kube, nomad: nomad}
	ns := namespace(t, kube)
	w := observe(t, kube, ns)
	newStage(t, h, ns, seed(t), 14, false).verify(t, h, 300*time.Second)
	w.verify(t)
}
