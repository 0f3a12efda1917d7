package stats

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// nomad is a Nomad of which the test says what is used, and the docker proxies of
// its clients.
type nomad struct {
	*httptest.Server
	mu sync.Mutex
	// cores and bytes are what every task uses; at is when they were sampled.
	at    time.Time
	cores float64
	bytes uint64
	// used are the counters that the proxies answer, by container.
	used map[string]time.Duration
	// guests are what VMs tell of their memory, by allocation.
	guests map[string]companion.Memory
	// broken are the clients and allocations that answer with an error, proxiless
	// the allocations without a proxy.
	broken    map[string]bool
	proxiless bool
	// asked are the requests, each in one word.
	asked []string
	takes time.Duration
	// conns counts connections, and now and most requests under way.
	conns, now, most int
}

func newNomad(t *testing.T) *nomad {
	n := &nomad{at: start, used: map[string]time.Duration{}, broken: map[string]bool{}}
	n.Server = httptest.NewUnstartedServer(n)
	n.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.do(func() { n.conns++ })
		}
	}
	n.Start()
	t.Cleanup(n.Close)
	return n
}

func (n *nomad) do(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

// take returns what was asked since it was called last, sorted.
func (n *nomad) take() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.Sort(n.asked)
	out := strings.Join(n.asked, " ")
	n.asked = nil
	return out
}

func (n *nomad) enter(what string) (leave func()) {
	n.do(func() { n.asked = append(n.asked, what); n.now++; n.most = max(n.most, n.now) })
	time.Sleep(n.takes)
	return func() { n.do(func() { n.now-- }) }
}

func (n *nomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := path.Base(path.Dir(r.URL.Path))
	if r.URL.Path == "/v1/client/stats" {
		id = r.URL.Query().Get("node_id")
	}
	defer n.enter(id)()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.broken[id]:
		http.Error(w, "No path to node", http.StatusNotFound)
	case strings.HasPrefix(id, "gone"):
		http.Error(w, fmt.Sprintf("Unknown allocation %q", id), http.StatusNotFound)
	case r.URL.Path == "/v1/client/stats":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"Timestamp": n.at.UnixNano(),
			"CPU":       []map[string]float64{{"User": 30, "System": 20, "Idle": 10}, {"User": 50, "System": 0, "Idle": 50}},
			"Memory":    map[string]uint64{"Total": 1000, "Available": 700, "Used": 200, "Free": 100}, "AllocDirStats": map[string]uint64{"Size": 50, "Used": 20, "Available": 30},
		})
	default:
		u := &api.TaskResourceUsage{Timestamp: n.at.UnixNano(), ResourceUsage: &api.ResourceUsage{
			CpuStats:    &api.CpuStats{Percent: n.cores * 100, Measured: []string{"Percent"}},
			MemoryStats: &api.MemoryStats{RSS: n.bytes, Swap: 5, Measured: []string{"RSS", "Swap"}},
		}}
		_ = json.NewEncoder(w).Encode(&api.AllocResourceUsage{Tasks: map[string]*api.TaskResourceUsage{"a": u, "b": u}})
	}
}

// Run is the docker proxy's end, and that of the companion beside a VM.
func (n *nomad) Run(_ context.Context, c taskexec.Command) (int, error) {
	if c.Task == translate.CompanionTask {
		return n.guest(c)
	}
	defer n.enter("proxy-" + c.AllocID)()
	if c.Driver != "docker" || !c.Handshake || c.Argv[0] != dockerproxy.CallProgram || c.Argv[1] != dockerproxy.CallUsage {
		return 0, fmt.Errorf("ran %+v", c)
	}
	line, err := bufio.NewReader(c.In).ReadBytes('\n')
	var want dockerproxy.UsageRequest
	if err := errors.Join(err, json.Unmarshal(line, &want)); err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proxiless {
		_, _ = io.WriteString(c.ErrOut, "no such file")
		return 127, nil
	}
	answer := dockerproxy.UsageAnswer{}
	for _, w := range want.Containers {
		used, runs := n.used[w.Name]
		if !runs {
			continue
		}
		u := dockerproxy.Usage{ID: w.Name, At: n.at, CPU: uint64(used), Memory: 100, WorkingSet: 60, RSS: 50, Cache: 45, Periods: 10, ThrottledPeriods: 4, Throttled: 5e9}
		if w.Network {
			u.Interfaces = []dockerproxy.Interface{{Name: "eth0", Rx: dockerproxy.Traffic{Bytes: 7, Packets: 1}, Tx: dockerproxy.Traffic{Bytes: 9}}}
		}
		answer[w.Name] = u
	}
	return 0, json.NewEncoder(c.Out).Encode(answer)
}

func (n *nomad) guest(c taskexec.Command) (int, error) {
	defer n.enter("guest-" + c.AllocID)()
	if c.Driver != "docker" || !slices.Equal(c.Argv, []string{"/companion", "vm-memory", translate.VMPlug}) {
		return 0, fmt.Errorf("ran %+v", c)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.guests[c.AllocID]
	if !ok {
		_, _ = io.WriteString(c.ErrOut, "the guest tells nothing of its memory")
		return 1, nil
	}
	return 0, json.NewEncoder(c.Out).Encode(m)
}

// bench is a Gatherer on such a Nomad.
type bench struct {
	*nomad
	*Gatherer
	clock   *clocktesting.FakeClock
	pods    []Pod
	clients []Client
}

func newBench(t *testing.T) *bench {
	b := &bench{nomad: newNomad(t), clock: clocktesting.NewFakeClock(start)}
	client, err := connect.Nomad(config.Nomad{Address: b.URL})
	if err != nil {
		t.Fatal(err)
	}
	b.Gatherer = New(Options{
		Node: "burst", Namespace: "default", Source: NewSource(client, b.nomad), Clock: b.clock, Log: hclog.NewNullLogger(),
		Pods: func() []Pod { return b.pods }, Clients: func() []Client { return b.clients },
	})
	return b
}

// sampled lets time pass, by the clients' clocks and our own.
func (b *bench) sampled(seconds float64, cores float64) {
	b.do(func() { b.at, b.cores = at(seconds), cores })
	b.clock.SetTime(at(seconds))
}

// podOn has these containers on a client, started at the start.
func podOn(client, name, driver string, containers ...string) Pod {
	started := metav1.NewTime(start)
	p := Pod{Driver: driver, Object: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Status:     corev1.PodStatus{StartTime: &started},
	}}
	for _, c := range containers {
		p.Object.Spec.Containers = append(p.Object.Spec.Containers, corev1.Container{Name: c})
		p.Object.Status.ContainerStatuses = append(p.Object.Status.ContainerStatuses, corev1.ContainerStatus{Name: c, Image: "img:1"})
		p.Containers = append(p.Containers, Container{Name: c, AllocID: name + "-alloc", Client: client, StartedAt: start})
	}
	return p
}
