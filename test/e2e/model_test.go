package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// play is a random pod.
type play struct {
	policy corev1.RestartPolicy
	// waits says that the play begins when it is told to; see [stage.begin].
	waits bool
	inits []script
	mains []script
}

// prediction is what the kubelet's rules make of a play.
type prediction struct {
	phase      corev1.PodPhase
	containers map[string]outcome
}

// outcome is a container's last state. ran is how often it has run, 0 for one
// whose turn never came, and seen is how many of those runs are known of.
type outcome struct {
	running   bool
	code      int
	seen, ran int
}

// turn is one run of a container, from 0.
type turn struct {
	container string
	n         int
}

func anyPolicy(r *rand.Rand) corev1.RestartPolicy {
	return []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}[r.IntN(3)]
}

// randomPlay makes a pod of at most two restarts a container, since the third
// would take the kubelet's 20 s of back-off.
func randomPlay(r *rand.Rand) play {
	p := play{policy: anyPolicy(r)}
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
	return p
}

// play plays a script until its container is not started again. A run that
// nobody saw is followed by another, whatever its end was.
func (s script) play(unseen map[turn]bool, again func(code int) bool) outcome {
	o := outcome{}
	for i, code := range s.codes {
		if o.ran++; unseen[turn{s.name, i}] {
			continue
		}
		if o.seen++; !again(code) {
			o.code = code
			return o
		}
	}
	return outcome{running: true, seen: o.seen + 1, ran: o.ran + 1}
}

// predict is a model of pkg/kubelet/kuberuntime (computePodActions) and
// kubelet_pods.go (getPhase).
func (p *play) predict(unseen map[turn]bool) prediction {
	out := prediction{phase: corev1.PodPending, containers: map[string]outcome{}}
	for _, s := range p.inits {
		// Always is OnFailure for init containers.
		o := s.play(unseen, func(code int) bool { return code != 0 && p.policy != corev1.RestartPolicyNever })
		out.containers[s.name] = o
		if o.running {
			return out
		}
		if o.code != 0 {
			out.phase = corev1.PodFailed
			return out
		}
	}
	running, failed := false, false
	for _, s := range p.mains {
		o := s.play(unseen, func(code int) bool {
			return p.policy == corev1.RestartPolicyAlways || p.policy == corev1.RestartPolicyOnFailure && code != 0
		})
		out.containers[s.name] = o
		running, failed = running || o.running, failed || o.code != 0
	}
	switch {
	case running:
		out.phase = corev1.PodRunning
	case failed:
		out.phase = corev1.PodFailed
	default:
		out.phase = corev1.PodSucceeded
	}
	return out
}

// goFile is what a play that waits waits for.
const goFile = "go"

// shell writes the time of each run into the diary before it ends as the script
// says.
func (s script) shell(waits bool) string {
	var cases strings.Builder
	for i, code := range s.codes {
		fmt.Fprintf(&cases, "%d) sleep 0.3; exit %d;; ", i, code)
	}
	begin := ""
	if waits {
		begin = "while [ ! -e /diary/" + goFile + " ]; do sleep 0.1; done; "
	}
	return begin + fmt.Sprintf(`f=/diary/%s; n=$(cat $f 2>/dev/null | wc -l); date +%%s >> $f; case $n in %s*) trap 'exit 0' TERM; while :; do sleep 0.2; done;; esac`,
		s.name, cases.String())
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

// reached says how a pod differs from what was predicted, "" when it does not.
func (w prediction) reached(pod *corev1.Pod) string {
	if pod.Status.Phase != w.phase {
		return fmt.Sprintf("phase %s, want %s", pod.Status.Phase, w.phase)
	}
	for name, want := range w.containers {
		st := status(pod, name)
		switch t := st.State.Terminated; {
		case want.running != (st.State.Running != nil):
			return fmt.Sprintf("container %s: running %v, want %v", name, !want.running, want.running)
		case !want.running && (t == nil || int(t.ExitCode) != want.code):
			return fmt.Sprintf("container %s is %s, want exit code %d", name, st.State.String(), want.code)
		case int(st.RestartCount) != want.seen-1:
			return fmt.Sprintf("container %s: restartCount %d, want %d", name, st.RestartCount, want.seen-1)
		}
	}
	return ""
}

// starts reads from the diary when the runs of each container began.
func (p *play) starts(t *testing.T, dir string) map[string][]time.Time {
	t.Helper()
	out := map[string][]time.Time{}
	for _, s := range p.scripts() {
		data, _ := os.ReadFile(filepath.Join(dir, s.name)) // none: it never ran
		for _, line := range strings.Fields(string(data)) {
			sec, err := strconv.ParseInt(line, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[s.name] = append(out[s.name], time.Unix(sec, 0))
		}
	}
	return out
}

// outage is a time without the agent that runs the pods, which was killed.
type outage struct{ from, to time.Time }

// forgetful is how long after its start a run may be lost on Nomad when its
// client's agent is killed; see [play.predictions].
const forgetful = 15 * time.Second

// forgets says whether a run may be lost that began at that time. Docker may
// start a container after the agent that asked for it has been killed.
func (o outage) forgets(start time.Time) bool {
	return start.After(o.from.Add(-forgetful)) && !start.After(o.to)
}

// predictions are all that may become of the play. Without outages it is one.
//
// Nomad's client writes a container down only after it has started it and the
// process that reads its log, and it removes one that has ended before it writes
// down what becomes of the task (client/allocrunner/taskrunner/task_runner.go,
// runDriver and Run; drivers/docker/driver.go, StartTask and createContainer). A
// run that begins and ends there is not known of after the agent was killed: the
// container is started again, and nothing tells of the run before.
func (p *play) predictions(starts map[string][]time.Time, outages []outage) []prediction {
	var lost []turn
	for name, times := range starts {
		for i, at := range times {
			if slices.ContainsFunc(outages, func(o outage) bool { return o.forgets(at) }) {
				lost = append(lost, turn{name, i})
			}
		}
	}
	var out []prediction
	for set := range 1 << len(lost) {
		unseen := map[turn]bool{}
		for i, l := range lost {
			if set&(1<<i) != 0 {
				unseen[l] = true
			}
		}
		out = append(out, p.predict(unseen))
	}
	return out
}

// compare says how a pod and its runs differ from what was predicted.
func (w prediction) compare(p *play, pod *corev1.Pod, starts map[string][]time.Time) error {
	if differs := w.reached(pod); differs != "" {
		return errors.New(differs)
	}
	for _, s := range p.scripts() {
		if got, want := len(starts[s.name]), w.containers[s.name].ran; got != want {
			return fmt.Errorf("container %s ran %d times, want %d", s.name, got, want)
		}
	}
	return nil
}

// verify waits for what was predicted and compares it with what really ran.
func (p *play) verify(t *testing.T, h *hybrid, pod *corev1.Pod, dir string, outages []outage, limit time.Duration) {
	t.Helper()
	got := await(t, h.kube, pod, limit, "as the kubelet would have it: "+p.String(), func(got *corev1.Pod) bool {
		return slices.ContainsFunc(p.predictions(p.starts(t, dir), outages), func(w prediction) bool { return w.reached(got) == "" })
	})
	// A container that was just told as running may not have written it down yet.
	eventually(t, 20*time.Second, fmt.Sprintf("pod %s (%s) ran as often as its status says", pod.Name, p), func() error {
		starts := p.starts(t, dir)
		var first error
		for i, w := range p.predictions(starts, outages) {
			err := w.compare(p, got, starts)
			if err == nil {
				if i > 0 {
					t.Logf("of the runs %v Nomad knows of %v", starts, w.containers)
				}
				return nil
			}
			if i == 0 {
				first = err
			}
		}
		return first
	})
}

// stage is a set of random pods.
type stage struct {
	plays   []play
	pods    []*corev1.Pod
	dirs    []string
	outages []outage
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

// verify compares all pods with their predictions, for which they have limit
// together.
func (s *stage) verify(t *testing.T, h *hybrid, limit time.Duration) {
	t.Helper()
	end := time.Now().Add(limit)
	for i := range s.plays {
		left := max(time.Until(end), 5*time.Second)
		t.Run(s.pods[i].Name, func(t *testing.T) { s.plays[i].verify(t, h, s.pods[i], s.dirs[i], s.outages, left) })
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
	newStage(t, h, namespace(t, kube), seed(t), 14, false).verify(t, h, 120*time.Second)
}
