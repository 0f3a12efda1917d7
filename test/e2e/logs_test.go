package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/transport/websocket"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// The log of a container that ends at once is whole.
func TestLogsOfContainersThatEndAtOnce(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const n = 12
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, create(t, kube, ns, pod(fmt.Sprintf("brief-%d", i), "echo one; echo two >&2; echo three")))
	}
	for _, p := range pods {
		p = await(t, kube, p, 90*time.Second, "succeeded", phase(corev1.PodSucceeded))
		// Docker's engine reads the two streams side by side, and so may swap what
		// follows at once.
		got := logs(t, kube, p, &corev1.PodLogOptions{})
		if len(got) != len("one\ntwo\nthree\n") {
			t.Errorf("the log of %s is %q", p.Name, got)
		}
	}
}

// followed is a log as it comes.
type followed struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	over chan struct{}
	err  error // of its end
}

func follow(t *testing.T, k kubernetes.Interface, p *corev1.Pod, o *corev1.PodLogOptions) *followed {
	t.Helper()
	o.Follow = true
	r, err := k.CoreV1().Pods(p.Namespace).GetLogs(p.Name, o).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &followed{over: make(chan struct{})}
	go func() {
		defer close(f.over)
		defer r.Close()
		_, f.err = io.Copy(f, r)
	}()
	return f
}

func (f *followed) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.Write(p)
}

func (f *followed) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

// ended waits for its end and returns it.
func (f *followed) ended(t *testing.T, limit time.Duration) string {
	t.Helper()
	select {
	case <-f.over:
		if f.err != nil {
			t.Errorf("the log ended by %v", f.err)
		}
	case <-time.After(limit):
		t.Errorf("the log has not ended within %s", limit)
	}
	return f.String()
}

// uptime is this machine's, which containers tell, too, in hundredths of a second.
func uptime(t *testing.T) time.Duration {
	t.Helper()
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	return parseUptime(t, strings.Fields(string(data))[0])
}

func parseUptime(t *testing.T, s string) time.Duration {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(f * float64(time.Second))
}

// Both streams in the order of writing, and all that can be asked of a log; every
// line tells when it was written.
func TestLogs(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const script = `say() { read -r up rest < /proc/uptime; echo "$1 $up"; }
for i in 0 1 2 3 4 5 6 7 8 9; do say "out $i"; sleep 0.05; say "err $i" >&2; sleep 0.05; done
sleep 5
say late; sleep 1; say end`
	p := create(t, kube, ns, pod("talks", script))
	p = await(t, kube, p, 60*time.Second, "running", func(p *corev1.Pod) bool { return status(p, "c").State.Running != nil })
	live := follow(t, kube, p, &corev1.PodLogOptions{Timestamps: true})
	await(t, kube, p, 60*time.Second, "succeeded", phase(corev1.PodSucceeded))
	followedLog := live.ended(t, 10*time.Second)
	all := logs(t, kube, p, &corev1.PodLogOptions{Timestamps: true})
	if followedLog != all {
		t.Errorf("followed:\n%s\nin the end:\n%s", followedLog, all)
	}

	boot := time.Now().Add(-uptime(t))
	var plain []string // without timestamps
	var stamps []time.Time
	// Docker reads the streams apart: on a busy machine it may note what was
	// written later on one of them first. Each of them has its order.
	said, both := map[string]int{}, map[string]bool{}
	for i, line := range strings.SplitAfter(strings.TrimSuffix(all, "\n"), "\n") {
		stamp, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		fields := strings.Fields(text)
		written := boot.Add(parseUptime(t, fields[len(fields)-1]))
		// A busy machine takes a while from the writing to Docker's noting.
		if off := at.Sub(written); off < -100*time.Millisecond || off > time.Second {
			t.Errorf("%q was written %s before its time", line, off)
		}
		if i > 0 && at.Before(stamps[i-1]) {
			t.Errorf("%q is told after %s", line, stamps[i-1])
		}
		switch {
		case i < 20:
			stream, n, _ := strings.Cut(text, " ")
			if n, _, _ = strings.Cut(n, " "); n != strconv.Itoa(said[stream]) {
				t.Errorf("line %d is %q, want the one of %d", i, text, said[stream])
			}
			if said[stream]++; i < 6 {
				both[stream] = true
			}
		case i == 20 && !strings.HasPrefix(text, "late "), i == 21 && !strings.HasPrefix(text, "end "):
			t.Errorf("line %d is %q", i, text)
		}
		plain, stamps = append(plain, strings.TrimSuffix(text, "\n")+"\n"), append(stamps, at)
	}
	if len(plain) != 22 || said["out"] != 10 || said["err"] != 10 {
		t.Fatalf("%d lines, %v", len(plain), said)
	}
	if len(both) != 2 {
		t.Errorf("the streams are not told in turn:\n%s", all)
	}
	from := func(i int) string { return strings.Join(plain[i:], "") }
	n := func(n int64) *int64 { return &n }
	// Whole seconds are what the API server passes on of sinceTime.
	late := metav1.NewTime(stamps[20].Truncate(time.Second))
	ago := int64(time.Since(stamps[20].Add(-2*time.Second))/time.Second) + 1
	for _, r := range []struct {
		what string
		o    corev1.PodLogOptions
		want string
	}{
		{"all", corev1.PodLogOptions{}, from(0)},
		{"none", corev1.PodLogOptions{TailLines: n(0)}, ""},
		{"the last one", corev1.PodLogOptions{TailLines: n(1)}, from(21)},
		{"some of both streams", corev1.PodLogOptions{TailLines: n(7)}, from(15)},
		{"more than there are", corev1.PodLogOptions{TailLines: n(100)}, from(0)},
		{"since a time", corev1.PodLogOptions{SinceTime: &late}, from(20)},
		{"since seconds ago", corev1.PodLogOptions{SinceSeconds: &ago}, from(20)},
		{"bytes", corev1.PodLogOptions{LimitBytes: n(9)}, from(0)[:9]},
		{"bytes of the last ones", corev1.PodLogOptions{LimitBytes: n(3), TailLines: n(2)}, from(20)[:3]},
	} {
		if got := logs(t, kube, p, &r.o); got != r.want {
			t.Errorf("%s: %q, want %q", r.what, got, r.want)
		}
	}
	if got := websocketLogs(t, p, &corev1.PodLogOptions{TailLines: n(3)}); got != from(19) {
		t.Errorf("over websocket: %q, want %q", got, from(19))
	}
	if out, err := tryKubectl(t, "", "logs", "-n", ns, p.Name, "--all-containers", "--since=1h", "--tail=2"); err != nil || out != from(20) {
		t.Errorf("kubectl: %q %v", out, err)
	}
}

// websocketLogs reads a log as a browser would.
func websocketLogs(t *testing.T, p *corev1.Pod, o *corev1.PodLogOptions) string {
	t.Helper()
	url := kube.CoreV1().RESTClient().Get().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("log").
		VersionedParams(o, scheme.ParameterCodec).URL()
	rt, connections, err := websocket.RoundTripperFor(restCfg)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := websocket.Negotiate(rt, connections, req, "binary.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var all []byte
	for {
		_, data, err := conn.ReadMessage()
		if err != nil {
			return string(all) // it ends by an error, as websockets do
		}
		all = append(all, data...)
	}
}

// count writes the number of the run, from 1 on, to both streams; the second
// ends after three seconds, the last one lives.
const count = `n=$(($(cat /data/n 2>/dev/null || echo 0)+1)); echo $n > /data/n
echo "run $n"; sleep 0.05; echo "of $n" >&2
case $n in 1) exit 1;; 2) sleep 3; echo "last of 2"; exit 1;; esac
sleep 3600`

// The kubelet shows one run of a container at a time, the current one or the
// previous, and a follow ends with its run.
func TestLogsOfRuns(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("restarts", count, restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		p.Spec.InitContainers = []corev1.Container{container("init", "echo prepared")}
	}))
	run := func(n int32) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			st := status(p, "c")
			return st.RestartCount == n-1 && st.State.Running != nil
		}
	}
	previous := func(c string) (string, error) {
		data, err := kube.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{Container: c, Previous: true}).DoRaw(t.Context())
		return string(data), err
	}
	p = await(t, kube, p, 90*time.Second, "in its second run", run(2))
	second := follow(t, kube, p, &corev1.PodLogOptions{Container: "c"})
	if got, err := previous("c"); err != nil || got != "run 1\nof 1\n" {
		t.Errorf("the run before the second: %q, %v", got, err)
	}
	if got := second.ended(t, 30*time.Second); got != "run 2\nof 2\nlast of 2\n" {
		t.Errorf("the second run, followed: %q", got)
	}
	await(t, kube, p, 30*time.Second, "told as ended", func(p *corev1.Pod) bool { return status(p, "c").State.Running == nil })
	for _, o := range []corev1.PodLogOptions{{Container: "c"}, {Container: "c", Previous: true}} {
		// Whichever is asked for, until the third begins.
		if got := logs(t, kube, p, &o); got != "run 2\nof 2\nlast of 2\n" {
			t.Errorf("between two runs: %q", got)
		}
	}
	p = await(t, kube, p, 90*time.Second, "in its third run", run(3))
	eventually(t, 10*time.Second, "the third run's log", func() error {
		if got := logs(t, kube, p, &corev1.PodLogOptions{Container: "c"}); got != "run 3\nof 3\n" {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	if got, err := previous("c"); err != nil || got != "run 2\nof 2\nlast of 2\n" {
		t.Errorf("the run before the third: %q, %v", got, err)
	}
	if got := logs(t, kube, p, &corev1.PodLogOptions{Container: "init"}); got != "prepared\n" {
		t.Errorf("the init container: %q", got)
	}
	out, err := tryKubectl(t, "", "logs", "-n", ns, p.Name, "-c", "init", "--previous")
	if want := fmt.Sprintf("(BadRequest): previous terminated container %q in pod %q not found", "init", p.Name); err == nil || !strings.Contains(out, want) {
		t.Errorf("the run before the first: %s %v", out, err)
	}
}

// A follow goes on when the agent of its client does.
func (h *hybrid) testFollowOverRestart(t *testing.T, ns string) {
	p := create(t, h.kube, ns, pod("counts", `for i in $(seq 1 60); do echo $i; sleep 0.5; done`))
	p = await(t, h.kube, p, 60*time.Second, "running", func(p *corev1.Pod) bool { return status(p, "c").State.Running != nil })
	f := follow(t, h.kube, p, &corev1.PodLogOptions{})
	eventually(t, 20*time.Second, "the log", func() error {
		if !strings.HasSuffix(f.String(), "3\n") {
			return errors.New(f.String())
		}
		return nil
	})
	// Not killed: a container so young might not be known to the next one.
	if err := h.Stop(t.Context(), devcluster.Nomad); err != nil {
		t.Fatal(err)
	}
	pause(t, 3*time.Second)
	h.start(t, devcluster.Nomad)
	var want strings.Builder
	for i := 1; i <= 60; i++ {
		fmt.Fprintln(&want, i)
	}
	if got := f.ended(t, 90*time.Second); got != want.String() {
		t.Errorf("%q", got)
	}
}
