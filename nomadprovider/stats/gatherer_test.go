package stats

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
)

func (b *bench) summarize(t *testing.T) *statsapi.Summary {
	t.Helper()
	s, err := b.Summary(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// used is what the summary says of pods and containers, in seconds.
func (b *bench) usedBy(t *testing.T) string {
	t.Helper()
	var out []string
	for _, p := range b.summarize(t).Pods {
		s := fmt.Sprintf("%s=%.1f", p.PodRef.Name, cpuSeconds(p.CPU))
		for _, c := range p.Containers {
			s += fmt.Sprintf(" %s:%.1f", c.Name, cpuSeconds(c.CPU))
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func cpuSeconds(c *statsapi.CPUStats) float64 { return float64(*c.UsageCoreNanoSeconds) / 1e9 }

// One gathering serves all who ask within the interval, at once or one by one.
func TestOneGatheringForAll(t *testing.T) {
	b := newBench(t)
	b.pods = []Pod{podOn("n1", "p", "qemu", "a")}
	b.clients = []Client{{ID: "n1", Counted: true}}
	b.sampled(10, 0.5)
	if got := b.take(); got != "" {
		t.Errorf("before anybody asks: %s", got)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _ = b.usedBy(t) })
	}
	wg.Wait()
	b.clock.SetTime(at(19))
	_ = b.usedBy(t)
	if got := b.take(); got != "guest-p-alloc n1 p-alloc" {
		t.Errorf("asked %s", got)
	}
	b.sampled(20, 0.5)
	if got := b.usedBy(t); got != "p=10.0 a:10.0" {
		t.Error(got)
	}
	if got := b.take(); got != "guest-p-alloc n1 p-alloc" {
		t.Errorf("asked %s", got)
	}
}

// However many pods there are, few calls are under way, on few connections.
func TestManyAllocations(t *testing.T) {
	b := newBench(t)
	b.takes = time.Millisecond
	for i := range 1000 {
		b.pods = append(b.pods, podOn(fmt.Sprint("n", i%50), fmt.Sprint("p", i), "docker", "a"))
	}
	for i := range 50 {
		b.clients = append(b.clients, Client{ID: fmt.Sprint("n", i), Counted: true})
	}
	b.sampled(10, 0.5)
	if got := len(b.summarize(t).Pods); got != 1000 {
		t.Errorf("%d pods", got)
	}
	if n := strings.Count(b.take(), "alloc"); n != 1000 || b.most > AtOnce || b.conns > 3*AtOnce {
		t.Errorf("%d allocations asked for, %d requests at once, %d connections", n, b.most, b.conns)
	}
}

// A client with the docker proxy is asked once for all its containers, in the one
// that has run for longest; VMs and others are Nomad's to tell of.
func TestProxy(t *testing.T) {
	b := newBench(t)
	host := podOn("n1", "host", "docker", "a")
	host.HostNetwork = true
	old := podOn("n1", "old", "docker", "a", "b")
	for i := range old.Containers {
		old.Containers[i].StartedAt = start.Add(-time.Hour)
	}
	b.pods = []Pod{host, old, podOn("n1", "vm", "qemu", "a"), podOn("n2", "plain", "docker", "a")}
	b.clients = []Client{{ID: "n1", DockerProxy: true}, {ID: "n2"}}
	b.used = map[string]time.Duration{"a-host-alloc": 2 * time.Second, "a-old-alloc": 300 * time.Second, "b-old-alloc": 40 * time.Second}
	b.sampled(10, 0.5)
	if got := b.usedBy(t); got != "host=2.0 a:2.0; old=340.0 a:300.0 b:40.0; vm=5.0 a:5.0; plain=5.0 a:5.0" {
		t.Error(got)
	}
	if got := b.take(); got != "guest-vm-alloc plain-alloc proxy-old-alloc vm-alloc" {
		t.Errorf("asked %s", got)
	}
	for _, p := range b.summarize(t).Pods {
		if has := p.Network != nil; has != (p.PodRef.Name == "old") {
			t.Errorf("network of %s: %v", p.PodRef.Name, p.Network)
		}
	}
	// What it does not tell, Nomad does, and the counters go on.
	b.sampled(20, 2)
	b.do(func() { b.proxiless = true })
	if got := b.usedBy(t); got != "host=13.0 a:13.0; old=380.0 a:320.0 b:60.0; vm=17.5 a:17.5; plain=17.5 a:17.5" {
		t.Error(got)
	}
	if got := b.take(); got != "guest-vm-alloc host-alloc old-alloc plain-alloc proxy-old-alloc vm-alloc" {
		t.Errorf("asked %s", got)
	}
}

// A VM's memory is what its guest uses, and what qemu takes while the guest does
// not tell.
func TestGuestMemory(t *testing.T) {
	b := newBench(t)
	b.bytes = 300 << 20
	b.pods = []Pod{podOn("n1", "told", "qemu", "a"), podOn("n1", "silent", "qemu", "a")}
	b.clients = []Client{{ID: "n1", Counted: true}}
	b.guests = map[string]companion.Memory{"told-alloc": {Total: 200 << 20, Available: 150 << 20}}
	b.sampled(10, 0.5)
	want := map[string]uint64{"told": 50 << 20, "silent": 300 << 20}
	for _, p := range b.summarize(t).Pods {
		if got := *p.Containers[0].Memory.WorkingSetBytes; got != want[p.PodRef.Name] {
			t.Errorf("%s uses %d MiB", p.PodRef.Name, got>>20)
		}
	}
}

// A container's counter is of its run, the pod's of all of them.
func TestRestart(t *testing.T) {
	b := newBench(t)
	b.pods = []Pod{podOn("n1", "p", "qemu", "a", "b")}
	b.clients = []Client{{ID: "n1"}}
	for _, step := range []struct {
		at     float64
		change func()
		want   string
	}{
		{10, nil, "p=10.0 a:5.0 b:5.0"},
		{20, nil, "p=20.0 a:10.0 b:10.0"},
		{30, func() { b.pods[0].Containers[0].StartedAt = at(25) }, "p=27.5 a:2.5 b:15.0"},
		{40, func() { b.pods[0].Containers = b.pods[0].Containers[1:] }, "p=32.5 b:20.0"},
		{50, func() { b.pods[0].Containers = nil }, ""},
		{60, func() {
			b.pods[0].Containers = []Container{{Name: "a", AllocID: "p-alloc", Client: "n1", StartedAt: at(58)}}
		}, "p=33.5 a:1.0"},
	} {
		if step.change != nil {
			step.change()
		}
		b.sampled(step.at, 0.5)
		if got := b.usedBy(t); got != step.want {
			t.Errorf("at %g s: %s, want %s", step.at, got, step.want)
		}
	}
}

// The node's counter goes on while clients come and go.
func TestNode(t *testing.T) {
	b := newBench(t)
	const eachUses = 1.0 // cores, as the fake has it
	total := 0.0
	for i, clients := range []string{"a", "a b", "a b c", "c", "", "c a", "c a"} {
		b.clients = nil
		for _, id := range strings.Fields(clients) {
			b.clients = append(b.clients, Client{ID: id, Counted: true})
		}
		b.clients = append(b.clients, Client{ID: "other pool's"})
		b.sampled(float64(600+10*i), 0)
		n := b.summarize(t).Node
		if clients == "" {
			if n.CPU != nil || n.Memory != nil {
				t.Errorf("no clients: %+v", n)
			}
			continue
		}
		got := cpuSeconds(n.CPU)
		if got <= 0 || got < total || got > total+3*10*eachUses+0.01 {
			t.Errorf("after %q: %g s after %g", clients, got, total)
		}
		total = got
		count := uint64(len(strings.Fields(clients)))
		if *n.Memory.WorkingSetBytes != 300*count || *n.Memory.AvailableBytes != 700*count || *n.Fs.CapacityBytes != 50*count || *n.Fs.AvailableBytes != 30*count {
			t.Errorf("of %d clients: %+v %+v", count, n.Memory, n.Fs)
		}
	}
	// a and b for 10 s, all three for 10, c for 10, and at last c and a: those that
	// come again count on from when they do.
	if want := 10 + 20 + 10 + 20.0; math.Abs(total-want) > 0.01 {
		t.Errorf("%g s, want %g", total, want)
	}
	if strings.Contains(b.take(), "other") {
		t.Error("a client was asked that the node does not count")
	}
}

// What cannot be read keeps its values for a while, and one call that fails is all
// for a client.
func TestUnreadable(t *testing.T) {
	b := newBench(t)
	for _, client := range []string{"n1", "n2"} {
		for i := range 30 {
			b.pods = append(b.pods, podOn(client, fmt.Sprint(client, "-", i), "docker", "a"))
		}
	}
	b.clients = []Client{{ID: "n1"}, {ID: "n2"}}
	b.sampled(10, 1)
	if n := len(b.summarize(t).Pods); n != 60 {
		t.Fatalf("%d pods", n)
	}
	b.take()
	b.do(func() {
		for i := range 30 {
			b.broken[fmt.Sprintf("n2-%d-alloc", i)] = true
		}
	})
	b.sampled(20, 1)
	for _, p := range b.summarize(t).Pods {
		want := map[string]float64{"n1": 20, "n2": 10}[p.PodRef.Name[:2]]
		if got := cpuSeconds(p.CPU); got != want || !p.CPU.Time.Time.Equal(at(want)) {
			t.Errorf("%s: %g s at %s", p.PodRef.Name, got, p.CPU.Time)
		}
	}
	if n := strings.Count(b.take(), "n2-"); n == 0 || n > AtOnce {
		t.Errorf("the client that does not answer was asked %d times", n)
	}
	b.sampled(10+Keep.Seconds()+1, 1)
	if n := len(b.summarize(t).Pods); n != 30 {
		t.Errorf("%d pods are told", n)
	}
}

// An allocation that has gone meanwhile is no error; when nothing is known at all,
// that is one.
func TestErrors(t *testing.T) {
	b := newBench(t)
	gone := podOn("n1", "p", "docker", "a")
	gone.Containers[0].AllocID = "gone-1"
	b.pods, b.clients = []Pod{gone}, []Client{{ID: "n1"}}
	b.sampled(10, 1)
	if s := b.get(t.Context()); s.err != nil || len(s.pods) != 0 {
		t.Errorf("%v, %d pods", s.err, len(s.pods))
	}
	b.pods = []Pod{podOn("n1", "p", "docker", "a")}
	b.broken["p-alloc"] = true
	b.sampled(20, 1)
	if _, err := b.Summary(t.Context(), false); err == nil || !strings.Contains(err.Error(), "p-alloc") {
		t.Errorf("%v", err)
	}
}

// A sample that is older than the run is of the one before.
func TestSampleOfFormerRun(t *testing.T) {
	b := newBench(t)
	b.pods, b.clients = []Pod{podOn("n1", "p", "docker", "a")}, []Client{{ID: "n1"}}
	b.pods[0].Containers[0].StartedAt = at(15)
	b.do(func() { b.at, b.cores = at(10), 1 })
	b.clock.SetTime(at(16))
	if got := b.usedBy(t); got != "" {
		t.Error(got)
	}
}
