package bench

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

var (
	followerCount = flag.Int("followers", 200, "how many followers of logs to have at once")
	followerPods  = flag.Int("follower-pods", 8, "how many pods to time beside the followers of logs, and without")
)

const (
	// followedPods write the logs.
	followedPods = 4
	// followerWindow is over how long the memory of followers is watched.
	followerWindow = 20 * time.Second
	// followerKiB is what a follower may cost nomad-kubelet.
	followerKiB = 512.0
)

// countScript writes a line a second: its number, and when in seconds since the
// boot.
const countScript = `n=0; while :; do n=$((n+1)); read -r up rest < /proc/uptime; echo "$n $up"; sleep 1; done`

// follower reads a log until its context ends.
type follower struct {
	mu      sync.Mutex
	lines   int
	last    int
	took    []time.Duration
	failed  error
	started chan struct{} // closed at the first line
}

func (f *follower) read(log io.Reader) {
	for lines := bufio.NewReader(log); ; {
		line, err := lines.ReadString('\n')
		if f.note(line, uptime(), err) != nil {
			return
		}
	}
}

func (f *follower) note(line string, now time.Duration, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, up := 0, ""
	if err == nil {
		_, err = fmt.Sscanf(line, "%d %s", &n, &up)
	}
	if err == nil && f.lines > 0 && n != f.last+1 {
		err = fmt.Errorf("line %d came after line %d", n, f.last)
	}
	written, parseErr := parseUptime(up)
	if err == nil {
		err = parseErr
	}
	if err != nil {
		f.failed = err
		return err
	}
	if f.lines++; f.lines == 1 {
		close(f.started)
	} else { // the first is from before
		f.took = append(f.took, now-written)
	}
	f.last = n
	return nil
}

// readyTimes are from create to Ready, and from Nomad's running event.
type readyTimes struct{ all, after []time.Duration }

// BenchmarkLogFollowers has many followers of the logs of a few pods at once, and
// meanwhile creates pods, which become Ready as soon as without followers.
func BenchmarkLogFollowers(b *testing.B) {
	h, n := hy, *followerCount
	ns := h.namespace(b)
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	events := newJobWatch()
	events.follow(ctx, h.nomad, h.profile.Namespace)
	pods, err := h.create(ctx, ns, followedPods, func(name string) *corev1.Pod {
		p := pod(name)
		p.Spec.Containers[0].Command = []string{"sh", "-c", "trap 'exit 0' TERM\n" + countScript}
		return p
	})
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	pid, err := h.pid(devcluster.NomadKubelet)
	must(b, err)
	var without, with readyTimes
	without.add(b, ctx, h, ns, "a", events, *followerPods/2+1)
	must(b, h.quiet(ctx))
	empty, _, err := memory(pid)
	must(b, err)

	following, leave := context.WithCancel(ctx)
	defer leave()
	all := h.followers(b, following, pods, n)
	time.Sleep(followerWindow / 2) // the memory of their beginning
	early, _, err := memory(pid)
	must(b, err)
	before, err := h.cpu()
	must(b, err)
	time.Sleep(followerWindow)
	after, err := h.cpu()
	must(b, err)
	late, _, err := memory(pid)
	must(b, err)
	with.add(b, ctx, h, ns, "b", events, *followerPods)
	took, lines := collectFollowers(b, all)
	leave()
	must(b, h.quiet(ctx))
	without.add(b, ctx, h, ns, "c", events, *followerPods/2+1)
	must(b, h.removePods(b.Context(), ns))

	used := since(before, after)
	name := fmt.Sprintf("%d followers of the logs of %d pods", n, followedPods)
	report.Add(name+": from a line's writing to its arrival", finely(took),
		fmt.Sprintf("%d lines, none missing; CPU cores: nomad-kubelet %.2f, Nomad %.2f, API server %.2f", lines,
			used[devcluster.NomadKubelet]/followerWindow.Seconds(), used[devcluster.Nomad]/followerWindow.Seconds(), used[devcluster.APIServer]/followerWindow.Seconds()))
	each := (late - empty) * 1024 / float64(n)
	report.Goal(b, "- resident memory of nomad-kubelet a follower", fmt.Sprintf("%.0f KiB", each),
		fmt.Sprintf("%.0f MiB without followers, %.0f MiB with them after %s, %.0f MiB after %s more", empty, early, followerWindow/2, late, followerWindow),
		fmt.Sprintf("at most %.0f KiB", followerKiB), each <= followerKiB)
	report.Add("- a new pod meanwhile, create to Ready", spread(with.all), "without followers: "+spread(without.all))
	reportAdded(b, "- of it, from Nomad's running event to Ready in the API", "without followers", with.after, without.after)
}

// followers are there when each has got a line.
func (h *hybrid) followers(b *testing.B, ctx context.Context, pods []*corev1.Pod, n int) []*follower {
	b.Helper()
	cfg, err := h.RESTConfig()
	must(b, err)
	cfg.QPS, cfg.Burst = 2000, 4000
	kube, err := kubernetes.NewForConfig(cfg)
	must(b, err)
	all := make([]*follower, n)
	must(b, parallel(n, func(i int) error {
		p, tail := pods[i%len(pods)], int64(1)
		log, err := kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Follow: true, TailLines: &tail}).Stream(ctx)
		if err != nil {
			return err
		}
		f := &follower{started: make(chan struct{})}
		all[i] = f
		go func() {
			defer log.Close()
			f.read(log)
		}()
		select {
		case <-f.started:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("follower %d has got nothing: %w", i, ctx.Err())
		}
	}))
	return all
}

// collectFollowers makes sure that all have got all lines up to now.
func collectFollowers(b *testing.B, all []*follower) (took []time.Duration, lines int) {
	b.Helper()
	least, most := 1<<62, 0
	for i, f := range all {
		f.mu.Lock()
		if f.failed != nil {
			b.Errorf("follower %d: %v", i, f.failed)
		}
		took, lines = append(took, f.took...), lines+f.lines
		least, most = min(least, f.last), max(most, f.last)
		f.mu.Unlock()
	}
	if most-least > 10 { // the pods have not started at one time, either
		b.Errorf("one follower has got line %d, and another one only line %d", most, least)
	}
	return took, lines
}

// add creates pods one after the other.
func (r *readyTimes) add(b *testing.B, ctx context.Context, h *hybrid, ns, prefix string, events *jobWatch, n int) {
	b.Helper()
	for i := range n {
		start := time.Now()
		p, err := h.kube.CoreV1().Pods(ns).Create(ctx, pod(fmt.Sprintf("%s%d", prefix, i)), metav1.CreateOptions{})
		must(b, err)
		times, err := h.pods.await(ctx, []*corev1.Pod{p})
		must(b, err)
		id := translate.JobID(h.ClusterID(), p.UID)
		ran, err := events.await(ctx, []string{id})
		must(b, err)
		// The first is not counted: it warms up.
		if i > 0 || strings.HasPrefix(prefix, "b") {
			ready := times[p.UID].ready
			r.all, r.after = append(r.all, ready.Sub(start)), append(r.after, ready.Sub(ran[id]))
		}
		zero := int64(0)
		must(b, h.kube.CoreV1().Pods(ns).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	}
}
