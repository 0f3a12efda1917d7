package bench

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	gateRest = 30 * time.Second
	// gateWrites are made at this pace, so that a wave of wakes is over before the
	// next one begins.
	gateWrites = 50
	gatePace   = time.Second
	gateCalm   = 5 * time.Second
	// gateReaches are how many gates are opened to see how soon their tasks start.
	gateReaches = 10
	// metricsLag is how old Nomad's newest count may be: it adds up intervals of
	// ten seconds and shows the last that is over.
	metricsLag = 20 * time.Second
)

// gateRun is what Nomad takes with a number of mock jobs. Server and client are
// one process, so all of it is of both sides.
type gateRun struct {
	MemoryMiB float64 `json:"memoryMiB"`
	HeapMiB   float64 `json:"heapMiB"`
	// Goroutines, and those of them in which a blocking query waits in the server.
	Goroutines int `json:"goroutines"`
	Queries    int `json:"queries"`
	// RestCPU is in seconds for gateRest, WriteCPU for gateWrites writes and
	// without what rest takes; Reads are Variable reads answered, likewise.
	RestCPU    float64 `json:"restCPU"`
	RestReads  float64 `json:"restReadsPerSecond"`
	WriteCPU   float64 `json:"writeCPU"`
	WriteReads float64 `json:"writeReads"`
	// Reach is the time from the answer to a gate's opening to its task's start.
	Reach []time.Duration `json:"-"`
}

// gateVariant is how the jobs are. With a Variable of its own a job is like that
// of a pod that projects something, such as a token: a query for a gate that is
// not there then waits at that Variable's place in Nomad's tree, and else at one
// that all such queries share (go-memdb, Txn.FirstWatch).
type gateVariant struct {
	name            string
	gates, variable bool
}

var gateVariants = []gateVariant{
	{name: "without gates"},
	{name: "gates", gates: true},
	{name: "gates and a Variable each", gates: true, variable: true},
}

// BenchmarkGates takes what open gates cost Nomad: the jobs of mock pods with
// their gate's template, beside the same jobs without it.
func BenchmarkGates(b *testing.B) {
	h, n := hy, *gatePods
	if n == 0 {
		b.Skip("-gate-pods is 0")
	}
	ns := h.namespace(b)
	plain, closed := h.unbound(b, ns, plainPod("plain")), h.unbound(b, ns, closedPod("closed"))
	var runs []gateRun
	for _, v := range gateVariants {
		runs = append(runs, h.gates(b, n, plain, closed, v))
	}
	must(b, h.removePods(b.Context(), ns))
	must(b, h.restartNomad(b.Context()))
	for i, v := range gateVariants[1:] {
		reportGates(n, v, runs[i+1], runs[0])
	}
	b.ReportMetric((runs[1].MemoryMiB-runs[0].MemoryMiB)*1024/float64(n), "KiB/gate")
}

// unbound is a pod as the API server completes it, which nobody runs.
func (h *hybrid) unbound(b *testing.B, ns string, p *corev1.Pod) *corev1.Pod {
	b.Helper()
	p, err := h.kube.CoreV1().Pods(ns).Create(b.Context(), p, metav1.CreateOptions{})
	must(b, err)
	return p
}

// closedPod has a second init container, which waits behind a closed gate; the
// mock driver lets the first run for ever.
func closedPod(name string) *corev1.Pod {
	p := plainPod(name)
	for _, name := range []string{"first", "second"} {
		c := p.Spec.Containers[0]
		c.Name = name
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

// restartNomad leaves a process that remembers nothing of what ran before, and
// waits until nomad-kubelet is in touch with it again.
func (h *hybrid) restartNomad(ctx context.Context) error {
	if err := h.Stop(ctx, devcluster.Nomad); err != nil {
		return err
	}
	for _, name := range []string{devcluster.Nomad, devcluster.NomadKubelet} {
		if err := h.Start(ctx, name); err != nil {
			return err
		}
	}
	return h.quiet(ctx)
}

func (h *hybrid) gates(b *testing.B, n int, plain, closed *corev1.Pod, v gateVariant) (x gateRun) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 4*manyTimeout)
	defer cancel()
	must(b, h.restartNomad(ctx))
	services, err := h.services(ctx)
	must(b, err)
	// The hybrid's own view does not follow Nomad's restart at once.
	events := newJobWatch()
	events.follow(ctx, h.nomad, directNamespace)
	ids := make([]string, n)
	must(b, parallel(n, func(i int) error {
		job, err := h.directJob(plain, services)
		if err != nil {
			return err
		}
		if ids[i] = *job.ID; !v.gates {
			job.TaskGroups[0].Tasks[0].Templates = nil
		}
		if v.variable {
			if err := h.putVariable(ctx, translate.VariablePath(ids[i]), api.VariableItems{"x": "y"}); err != nil {
				return err
			}
		}
		return h.register(ctx, job)
	}))
	_, err = events.await(ctx, ids)
	must(b, err)
	must(b, h.quiet(ctx))
	reads := &readCount{by: map[string]int{}}
	go reads.follow(ctx, h.nomad)
	x.size(b, h)
	x.rest(b, h, reads)
	x.writes(b, h, reads)
	ids = append(ids, x.reach(b, h, events, closed, services)...)
	must(b, h.removeDirect(b.Context(), ids))
	if v.variable {
		must(b, parallel(n, func(i int) error { return h.removeVariable(b.Context(), translate.VariablePath(ids[i])) }))
	}
	return x
}

// size reads what Nomad holds, after a garbage collection and the time that the
// runtime takes to give back memory.
func (x *gateRun) size(b *testing.B, h *hybrid) {
	b.Helper()
	_, err := h.nomad.Agent().Lookup("heap", api.PprofOptions{GC: 1}, nil)
	must(b, err)
	time.Sleep(*settle)
	pid, err := h.pid(devcluster.Nomad)
	must(b, err)
	x.MemoryMiB, _, err = memory(pid)
	must(b, err)
	m, _, err := h.nomad.Operator().MetricsSummary(nil)
	must(b, err)
	for _, g := range m.Gauges {
		if strings.HasSuffix(g.Name, "runtime.alloc_bytes") {
			x.HeapMiB = float64(g.Value) / (1 << 20)
		}
	}
	stacks, err := h.nomad.Agent().Lookup("goroutine", api.PprofOptions{Debug: 1}, nil)
	must(b, err)
	x.Goroutines, x.Queries = goroutines(string(stacks), ".blockingRPC+")
}

// goroutines counts them in a profile as text, and those that are in a function.
func goroutines(profile, function string) (all, in int) {
	for _, group := range strings.Split(profile, "\n\n") {
		var n int
		if at := strings.Index(group, " @ "); at >= 0 {
			line := strings.LastIndexByte(group[:at], '\n') + 1
			if _, err := fmt.Sscan(group[line:at], &n); err != nil {
				continue
			}
		}
		if all += n; strings.Contains(group, function) {
			in += n
		}
	}
	return all, in
}

func (x *gateRun) rest(b *testing.B, h *hybrid, reads *readCount) {
	b.Helper()
	time.Sleep(metricsLag)
	count, start := reads.total(), time.Now()
	x.RestCPU = h.nomadCPU(b, func() { time.Sleep(gateRest) })
	x.RestReads = float64(reads.total()-count) / time.Since(start).Seconds()
}

// writes opens gates of jobs that are not there, as if others had been.
func (x *gateRun) writes(b *testing.B, h *hybrid, reads *readCount) {
	b.Helper()
	count, start := reads.total(), time.Now()
	gates := make([]string, gateWrites)
	took := time.Duration(0)
	x.WriteCPU = h.nomadCPU(b, func() {
		for i := range gates {
			gates[i] = translate.GatePath(fmt.Sprintf("k8s-%s-other%d", directCluster, i), "c")
			must(b, h.putVariable(b.Context(), gates[i], gateOpen))
			time.Sleep(gatePace)
		}
		time.Sleep(gateCalm)
		took = time.Since(start)
	})
	x.WriteCPU -= x.RestCPU * took.Seconds() / gateRest.Seconds()
	time.Sleep(metricsLag)
	x.WriteReads = float64(reads.total()-count) - x.RestReads*time.Since(start).Seconds()
	for _, path := range gates {
		must(b, h.removeVariable(b.Context(), path))
	}
}

// reach opens the gates of jobs that wait for it, one after another, and returns
// the jobs.
func (x *gateRun) reach(b *testing.B, h *hybrid, events *jobWatch, like *corev1.Pod, services []corev1.Service) (ids []string) {
	b.Helper()
	var gates []string
	for range gateReaches {
		job, err := h.directJob(like, services)
		must(b, err)
		must(b, h.register(b.Context(), job))
		ids, gates = append(ids, *job.ID), append(gates, translate.GatePath(*job.ID, "second"))
	}
	_, err := events.await(b.Context(), ids)
	must(b, err)
	for i, id := range ids {
		must(b, h.quiet(b.Context()))
		must(b, h.putVariable(b.Context(), gates[i], gateOpen))
		opened := time.Now()
		must(b, poll(b.Context(), oneTimeout, func(ctx context.Context) error {
			list, _, err := h.nomad.Jobs().Allocations(id, false, (&api.QueryOptions{Namespace: directNamespace}).WithContext(ctx))
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%d allocations (%v)", len(list), err)
			}
			ts := list[0].TaskStates["second"]
			if ts == nil || ts.StartedAt.IsZero() {
				return fmt.Errorf("the task of job %s has not started", id)
			}
			x.Reach = append(x.Reach, ts.StartedAt.Sub(opened))
			return nil
		}))
	}
	for _, path := range gates {
		must(b, h.removeVariable(b.Context(), path))
	}
	return ids
}

var gateOpen = api.VariableItems{translate.GateItem: translate.GateOpen}

func (h *hybrid) putVariable(ctx context.Context, path string, items api.VariableItems) error {
	_, _, err := h.nomad.Variables().Update(&api.Variable{Namespace: directNamespace, Path: path, Items: items},
		(&api.WriteOptions{Namespace: directNamespace}).WithContext(ctx))
	return err
}

func (h *hybrid) removeVariable(ctx context.Context, path string) error {
	_, err := h.nomad.Variables().Delete(path, (&api.WriteOptions{Namespace: directNamespace}).WithContext(ctx))
	return err
}

// nomadCPU is the CPU time in seconds that Nomad takes meanwhile.
func (h *hybrid) nomadCPU(b *testing.B, meanwhile func()) float64 {
	b.Helper()
	pid, err := h.pid(devcluster.Nomad)
	must(b, err)
	before, err := processCPU(pid)
	must(b, err)
	meanwhile()
	after, err := processCPU(pid)
	must(b, err)
	return after - before
}

// readCount adds up how many reads of a Variable Nomad has answered, blocking
// ones when they come back.
type readCount struct {
	mu sync.Mutex
	by map[string]int // by interval
}

func (c *readCount) follow(ctx context.Context, nomad *api.Client) {
	for ctx.Err() == nil {
		if m, _, err := nomad.Operator().MetricsSummary((&api.QueryOptions{}).WithContext(ctx)); err == nil {
			c.see(m)
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
}

func (c *readCount) see(m *api.MetricsSummary) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range m.Samples {
		if s.Name == "nomad.nomad.variables.read" {
			c.by[m.Timestamp] = s.Count
		}
	}
}

func (c *readCount) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.by {
		n += k
	}
	return n
}

func reportGates(n int, v gateVariant, with, without gateRun) {
	each := float64(n)
	report.Add(fmt.Sprintf("%d mock jobs, %s: memory of Nomad, server and client", n, v.name), fmt.Sprintf("%.0f MiB", with.MemoryMiB),
		fmt.Sprintf("%.0f MiB without: %.0f KiB a gate; heap %.0f beside %.0f MiB", without.MemoryMiB,
			(with.MemoryMiB-without.MemoryMiB)*1024/each, with.HeapMiB, without.HeapMiB))
	report.Add("- goroutines", fmt.Sprintf("%.2f a gate", float64(with.Goroutines-without.Goroutines)/each),
		fmt.Sprintf("%d beside %d", with.Goroutines, without.Goroutines))
	report.Add("- blocking queries at the server", fmt.Sprintf("%.2f a gate", float64(with.Queries-without.Queries)/each),
		fmt.Sprintf("%d beside %d", with.Queries, without.Queries))
	report.Add("- CPU at rest", fmt.Sprintf("%.2f s in %s", with.RestCPU, gateRest),
		fmt.Sprintf("%.2f s without; %.1f Variable reads a second beside %.1f", without.RestCPU, with.RestReads, without.RestReads))
	report.Add(fmt.Sprintf("- CPU for %d writes to gates of other jobs", gateWrites), fmt.Sprintf("%.2f s", with.WriteCPU),
		fmt.Sprintf("%.2f s without; a write wakes %.1f queries beside %.1f",
			without.WriteCPU, with.WriteReads/gateWrites, without.WriteReads/gateWrites))
	report.Add("- from opening a gate to the start of its task", spread(with.Reach), "beside jobs without: "+spread(without.Reach))
	report.Detail("gates, "+v.name, map[string]any{
		"with": with, "without": without, "withReach [ms]": msList(with.Reach), "withoutReach [ms]": msList(without.Reach),
	})
}

func TestGoroutines(t *testing.T) {
	all, in := goroutines("goroutine profile: total 7\n"+
		"4 @ 0x1 0x2\n#\t0x1\tnomad.(*Server).blockingRPC+0x5\tx.go:1\n\n"+
		"3 @ 0x3\n#\t0x3\tmain.f+0x1\ty.go:1\n", ".blockingRPC+")
	if all != 7 || in != 4 {
		t.Errorf("%d goroutines, %d of them in the function", all, in)
	}
}
