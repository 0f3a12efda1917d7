package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
)

const (
	probePods   = 10
	probePeriod = time.Second
	execP95     = 250 * time.Millisecond
)

// arrivals are the moments at which probes truly came, by pod.
type arrivals struct {
	mu sync.Mutex
	at map[string][]time.Time
}

func (a *arrivals) add(pod string, t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = map[string][]time.Time{}
	}
	a.at[pod] = append(a.at[pod], t)
}

// between returns the intervals between the arrivals of each pod within that
// time, and how many arrivals there were.
func (a *arrivals) between(from, to time.Time) (intervals []time.Duration, count int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.at {
		slices.SortFunc(at, time.Time.Compare)
		var last time.Time
		for _, t := range at {
			if t.Before(from) || t.After(to) {
				continue
			}
			if count++; !last.IsZero() {
				intervals = append(intervals, t.Sub(last))
			}
			last = t
		}
	}
	return intervals, count
}

// probeKind is one way to probe: the handler of a pod's probe, and who is told
// of its arrivals.
type probeKind struct {
	name    string
	handler func(pod string) corev1.ProbeHandler
	mount   func(*corev1.Pod)
	// collect gathers what has not been added yet.
	collect func(*arrivals) error
	goal    time.Duration // of p95; none when zero
}

// BenchmarkProbeTiming takes the times at which probes arrive that are due every
// second: commands by the files that they leave, requests and connections by
// servers of the benchmark. The error of an interval is what it differs from the
// period.
func BenchmarkProbeTiming(b *testing.B) {
	h := hy
	ns, m := h.namespace(b), h.marks(b)
	host := h.hostAddress(b, ns)
	var got arrivals
	for _, k := range []probeKind{execKind(m), httpKind(b, host, &got), tcpKind(b, host, &got)} {
		b.Run(k.name, func(b *testing.B) { h.probeTiming(b, ns, k, &got) })
	}
}

func (h *hybrid) probeTiming(b *testing.B, ns string, k probeKind, got *arrivals) {
	ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
	defer cancel()
	must(b, h.quiet(ctx))
	pods, err := h.create(ctx, ns, probePods, func(name string) *corev1.Pod {
		p := pod(name)
		if k.mount != nil {
			k.mount(p)
		}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: k.handler(name), PeriodSeconds: int32(probePeriod.Seconds())}
		return p
	})
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	from := time.Now()
	before, err := h.cpu()
	must(b, err)
	time.Sleep(*window)
	to := time.Now()
	after, err := h.cpu()
	must(b, err)
	must(b, h.removePods(b.Context(), ns))
	if k.collect != nil {
		must(b, k.collect(got))
	}
	intervals, count := got.between(from, to)
	got.at = nil
	if len(intervals) == 0 {
		b.Fatalf("%d %s probes arrived, no two at the same pod", count, k.name)
	}
	reportProbing(b, k, intervals, count, since(before, after))
}

func reportProbing(b *testing.B, k probeKind, intervals []time.Duration, count int, used cpuTimes) {
	off := make([]time.Duration, len(intervals))
	for i, d := range intervals {
		off[i] = (d - probePeriod).Abs()
	}
	p95 := figures.Quantile(off, 0.95)
	b.ReportMetric(float64(p95.Milliseconds()), "ms-p95")
	figure := fmt.Sprintf("%s probes of %d pods, every %s: error of the interval", k.name, probePods, probePeriod)
	measured := fmt.Sprintf("%s, worst %s", spread(off), ms(figures.Quantile(off, 1)))
	beside := fmt.Sprintf("%d came where %.0f were due; CPU seconds: %s", count, probePods*window.Seconds()/probePeriod.Seconds(), used)
	if k.goal > 0 {
		report.Goal(b, figure, measured, beside, "p95 at most "+ms(k.goal), p95 <= k.goal)
	} else {
		report.Add(figure, measured, beside)
	}
	report.Detail("probing, "+k.name+", intervals [ms]", msList(intervals))
}

// hostAddress is this machine's on the pods' network, which has one once a pod
// has run.
func (h *hybrid) hostAddress(b *testing.B, ns string) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), oneTimeout)
	defer cancel()
	p, err := h.kube.CoreV1().Pods(ns).Create(ctx, pod("first"), metav1.CreateOptions{})
	must(b, err)
	_, err = h.pods.await(ctx, []*corev1.Pod{p})
	must(b, err)
	p, err = h.kube.CoreV1().Pods(ns).Get(ctx, p.Name, metav1.GetOptions{})
	must(b, err)
	must(b, h.removePods(b.Context(), ns))
	addrs, err := net.InterfaceAddrs()
	must(b, err)
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.Contains(net.ParseIP(p.Status.PodIP)) {
			return n.IP.String()
		}
	}
	b.Fatalf("this machine has no address beside the pod's %s", p.Status.PodIP)
	return ""
}

// execKind leaves a file at each probe.
func execKind(m marks) probeKind {
	return probeKind{
		name: "exec", goal: execP95, mount: m.mount,
		handler: func(pod string) corev1.ProbeHandler {
			return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"mktemp", "/marks/" + pod + ".XXXXXX"}}}
		},
		collect: func(a *arrivals) error {
			times, err := m.times()
			for name, t := range times {
				pod, _, _ := strings.Cut(name, ".")
				a.add(pod, t)
			}
			return err
		},
	}
}

// httpKind asks for a path of its own for each pod.
func httpKind(b *testing.B, host string, got *arrivals) probeKind {
	b.Helper()
	l := listen(b, host)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got.add(strings.TrimPrefix(r.URL.Path, "/"), time.Now())
	})}
	go func() { _ = server.Serve(l) }() // ends with the listener
	b.Cleanup(func() { _ = server.Close() })
	return probeKind{name: "httpGet", handler: func(pod string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: host, Port: portOf(l), Path: "/" + pod}}
	}}
}

// tcpKind connects to a port of its own for each pod.
func tcpKind(b *testing.B, host string, got *arrivals) probeKind {
	b.Helper()
	ports := map[string]intstr.IntOrString{}
	for i := range probePods {
		l, name := listen(b, host), podName(i)
		ports[name] = portOf(l)
		go func() {
			for {
				conn, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					got.add(name, time.Now())
					_ = conn.Close()
				}
			}
		}()
	}
	return probeKind{name: "tcpSocket", handler: func(pod string) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: host, Port: ports[pod]}}
	}}
}

func listen(b *testing.B, host string) net.Listener {
	b.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	must(b, err)
	b.Cleanup(func() { _ = l.Close() })
	return l
}

func portOf(l net.Listener) intstr.IntOrString {
	return intstr.FromInt32(int32(l.Addr().(*net.TCPAddr).Port))
}
