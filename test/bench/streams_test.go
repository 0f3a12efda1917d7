package bench

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

var (
	streamRounds = flag.Int("stream-rounds", 3, "how often to measure each stream, by turns with what it is beside")
	streamMiB    = flag.Int("stream-mib", 32, "how much to carry by a call or a connection, in MiB")
	streamCalls  = flag.Int("stream-calls", 20, "how many round trips to time")
)

// The goals for streams, beside the limit: what Nomad's own API does, or a
// connection straight to the pod.
const (
	streamShare   = 0.9
	streamAdded   = 20 * time.Millisecond
	streamTimeout = 5 * time.Minute
)

// streamed is a container of a pod with the ways to its streams.
type streamed struct {
	h     *hybrid
	rest  *rest.Config
	nomad *api.Client
	marks marks
	pod   *corev1.Pod
	alloc *api.Allocation
	task  string
}

// streamed runs a pod of one container until the benchmark ends. Nomad is asked
// through the proxy, as nomad-kubelet asks it.
func (h *hybrid) streamed(b *testing.B, ns, name, script string) *streamed {
	b.Helper()
	s := &streamed{h: h, marks: h.marks(b), task: translate.TaskName("c")}
	var err error
	s.rest, err = h.RESTConfig()
	must(b, err)
	s.nomad, err = api.NewClient(&api.Config{Address: h.proxy.address, TLSConfig: &api.TLSConfig{}})
	must(b, err)
	p := pod(name)
	s.marks.mount(p)
	p.Spec.Containers[0].Command = []string{"sh", "-c", "trap 'exit 0' TERM\n" + script}
	ctx, cancel := context.WithTimeout(b.Context(), oneTimeout)
	defer cancel()
	s.pod, err = h.kube.CoreV1().Pods(ns).Create(ctx, p, metav1.CreateOptions{})
	must(b, err)
	_, err = h.pods.await(ctx, []*corev1.Pod{s.pod})
	must(b, err)
	s.pod, err = h.kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
	must(b, err)
	allocs, _, err := h.nomad.Jobs().Allocations(translate.JobID(h.ClusterID(), s.pod.UID), false,
		(&api.QueryOptions{Namespace: h.profile.Namespace}).WithContext(ctx))
	must(b, err)
	if len(allocs) != 1 {
		b.Fatalf("pod %s has %d allocations", name, len(allocs))
	}
	// The API client does not find this node and goes by way of its agent, which
	// here is the proxy.
	s.alloc = &api.Allocation{ID: allocs[0].ID, Namespace: h.profile.Namespace, NodeID: "00000000-0000-0000-0000-000000000000"}
	return s
}

// side is one of the two ways to a container's streams.
type side struct {
	name string
	// follow follows stdout from its last line on, of which that is the length in
	// bytes with its end, until ctx ends.
	follow func(ctx context.Context, last int) (io.ReadCloser, error)
	// exec runs a command; one that does not end well is an error.
	exec func(ctx context.Context, argv []string, in io.Reader, out io.Writer) error
}

// sides are what is measured, and what it is beside.
func (s *streamed) sides() [2]side {
	return [2]side{{"API server", s.podLog, s.podExec}, {"Nomad", s.nomadLog, s.nomadExec}}
}

func (s *streamed) podLog(ctx context.Context, _ int) (io.ReadCloser, error) {
	tail := int64(1)
	return s.h.kube.CoreV1().Pods(s.pod.Namespace).GetLogs(s.pod.Name, &corev1.PodLogOptions{Follow: true, TailLines: &tail}).Stream(ctx)
}

func (s *streamed) nomadLog(ctx context.Context, last int) (io.ReadCloser, error) {
	gone := make(chan struct{})
	context.AfterFunc(ctx, func() { close(gone) })
	q := &api.QueryOptions{Namespace: s.alloc.Namespace, Params: map[string]string{}}
	frames, errs := s.nomad.AllocFS().Logs(s.alloc, true, s.task, "stdout", "end", int64(last), gone, q.WithContext(ctx))
	if frames == nil {
		return nil, <-errs
	}
	return io.NopCloser(api.NewFrameReader(frames, errs, gone)), nil
}

func (s *streamed) podExec(ctx context.Context, argv []string, in io.Reader, out io.Writer) error {
	req := s.h.kube.CoreV1().RESTClient().Get().Resource("pods").Namespace(s.pod.Namespace).Name(s.pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "c", Command: argv, Stdin: in != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	ex, err := remotecommand.NewWebSocketExecutor(s.rest, "GET", req.URL().String())
	if err != nil {
		return err
	}
	return ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
}

func (s *streamed) nomadExec(ctx context.Context, argv []string, in io.Reader, out io.Writer) error {
	if in == nil {
		in = bytes.NewReader(nil)
	}
	code, err := s.nomad.Allocations().Exec(ctx, s.alloc, s.task, false, argv, in, out, io.Discard, nil,
		&api.QueryOptions{Namespace: s.alloc.Namespace})
	if err == nil && code != 0 {
		err = fmt.Errorf("%q ended with %d", argv, code)
	}
	return err
}

// repeated takes a text that is written over and over, and nothing else.
type repeated struct {
	text []byte
	n    int64 // bytes so far
}

// Write implements [io.Writer].
func (r *repeated) Write(p []byte) (int, error) {
	size := int64(len(r.text))
	for rest := p; len(rest) > 0; {
		want := r.text[r.n%size:]
		want = want[:min(len(want), len(rest))]
		if !bytes.Equal(rest[:len(want)], want) {
			at := 0
			for rest[at] == want[at] {
				at++
			}
			return 0, fmt.Errorf("after %d bytes (%d times the text and %d) came %.300q where %.300q was due", r.n+int64(at), r.n/size, r.n%size+int64(at), rest[at:], want[at:])
		}
		rest = rest[len(want):]
		r.n += int64(len(want))
	}
	return len(p), nil
}

// repeating gives a text over and over.
type repeating struct {
	text []byte
	n    int64
}

// Read implements [io.Reader].
func (r *repeating) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.n%int64(len(r.text)):])
	r.n += int64(n)
	return n, nil
}

// numbered are so many lines of one length that all differ.
func numbered(lines, length int) []byte {
	var b bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&b, "%0*d\n", length-1, i)
	}
	return b.Bytes()
}

// rate in MB a second.
func rate(bytes int64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }

// rates are what came of rounds by turns, and the CPU time of each side.
type rates struct {
	MBs [2][]float64 `json:"MBs"`
	CPU [2]cpuTimes  `json:"cpu"`
}

// turns measures both sides by turns; one says how long so many bytes took.
func (h *hybrid) turns(b *testing.B, bytes int64, one func(i int) (time.Duration, error)) (out rates) {
	b.Helper()
	out.CPU = [2]cpuTimes{{}, {}}
	for range *streamRounds {
		for i := range 2 {
			before, err := h.cpu()
			must(b, err)
			took, err := one(i)
			if err != nil {
				b.Fatalf("by %s: %v", [2]string{"nomad-kubelet", "the limit"}[i], err)
			}
			after, err := h.cpu()
			must(b, err)
			out.MBs[i] = append(out.MBs[i], rate(bytes, took))
			for name, s := range since(before, after) {
				out.CPU[i][name] += s / float64(*streamRounds)
			}
		}
	}
	return out
}

// reportRates takes the goal at the medians.
func reportRates(b *testing.B, figure, limit string, r rates) {
	b.Helper()
	got, beside := figures.Median(r.MBs[0]), figures.Median(r.MBs[1])
	share := got / beside
	b.ReportMetric(share, "of-limit")
	report.Goal(b, figure, fmt.Sprintf("%.1f MB/s, %.2f of the limit", got, share),
		fmt.Sprintf("%s: %.1f MB/s; CPU seconds: %s; %s: %s", limit, beside, r.CPU[0], limit, r.CPU[1]),
		fmt.Sprintf("at least %.1f of it", streamShare), share >= streamShare)
	report.Detail(figure, r)
}

// reportAdded takes the goal at the difference of the medians.
func reportAdded(b *testing.B, figure, limit string, got, beside []time.Duration) {
	b.Helper()
	added := figures.Median(got) - figures.Median(beside)
	b.ReportMetric(float64(added.Microseconds())/1000, "ms-added")
	report.Goal(b, figure, finely(got), fmt.Sprintf("%s: %s; added at the median %.1f ms", limit, finely(beside), float64(added.Microseconds())/1000),
		"at most "+ms(streamAdded)+" added", added <= streamAdded)
	report.Detail(figure+" [ms]", [2][]int64{msList(got), msList(beside)})
}

func finely(list []time.Duration) string {
	f := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("median %.1f ms, p95 %.1f ms", f(figures.Median(list)), f(figures.Quantile(list, 0.95)))
}

func TestRepeated(t *testing.T) {
	text := numbered(10, 8)
	if len(text) != 80 || string(text[72:]) != "0000009\n" {
		t.Errorf("%q", text)
	}
	r := &repeated{text: text}
	if n, err := io.CopyN(r, &repeating{text: text}, 250); n != 250 || err != nil {
		t.Errorf("%d bytes: %v", n, err)
	}
	if _, err := r.Write([]byte("x")); err == nil {
		t.Error("another byte was taken")
	}
}
