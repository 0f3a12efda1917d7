package node

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
)

// stub is a ClientSource that says what it is told.
type stub struct {
	mu      sync.Mutex
	ok      bool
	since   time.Time
	clients []ClientInfo
	pool    bool
	ch      chan struct{}
}

func (s *stub) set(ok bool, since time.Time, clients ...ClientInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ok, s.since, s.clients = ok, since, clients
	select {
	case s.ch <- struct{}{}:
	default:
	}
}

func (s *stub) Healthy() (bool, time.Time, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ok, s.since, "no answer"
}
func (s *stub) Synced() bool { return true }
func (s *stub) List() []ClientInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients
}
func (s *stub) Subscribe() (<-chan struct{}, func())                         { return s.ch, func() {} }
func (s *stub) PoolExists(context.Context, string) (bool, error)             { return s.pool, nil }
func (s *stub) MemoryOversubscription(context.Context, string) (bool, error) { return true, nil }

func testConfig(name string) config.VirtualNode {
	c := config.Config{VirtualNodes: []config.VirtualNode{{Name: name}}}
	c.Complete()
	return c.VirtualNodes[0]
}

func newTestNode(kube *fake.Clientset, src ClientSource, clk clock.WithTicker) (*Node, *record.FakeRecorder) {
	rec := record.NewFakeRecorder(50)
	return New(Options{
		Config: testConfig("burst"), Clients: src, Kube: kube, Region: "global", NodeIP: "192.0.2.1", Port: 10250,
		Version: KubeletVersion("0.1.0"), Recorder: rec, Log: hclog.NewNullLogger(), Clock: clk,
	}), rec
}

func start(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func get(t *testing.T, kube *fake.Clientset) *corev1.Node {
	t.Helper()
	n, err := kube.CoreV1().Nodes().Get(context.Background(), "burst", metav1.GetOptions{})
	if err != nil {
		return &corev1.Node{}
	}
	return n
}

func condition(n *corev1.Node, t corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func TestNodeLifecycle(t *testing.T) {
	kube := fake.NewClientset()
	src := &stub{ok: true, pool: true, ch: make(chan struct{}, 1), clients: []ClientInfo{client("a", 2000, 2)}}
	n, rec := newTestNode(kube, src, clock.RealClock{})
	n.readiness.after = 1500 * time.Millisecond
	start(t, n)
	ctx := context.Background()

	nomadtest.Eventually(t, 10*time.Second, "the node is ready", func() bool {
		return condition(get(t, kube), corev1.NodeReady).Status == corev1.ConditionTrue
	})
	got := get(t, kube)
	if q := got.Status.Capacity.Cpu().String(); q != "2" {
		t.Errorf("cpu %s", q)
	}
	if len(got.Spec.Taints) != 1 || got.Spec.Taints[0].Key != "nomad-kubelet.io/provider" {
		t.Errorf("taints %v", got.Spec.Taints)
	}
	if p := n.Profile(); p.MHzPerCore != 1000 || !p.MemoryOversubscription || p.Region != "global" {
		t.Errorf("profile %+v", p)
	}

	// A client joins.
	src.set(true, time.Time{}, client("a", 2000, 2), client("b", 4000, 2))
	nomadtest.Eventually(t, 10*time.Second, "the capacity grows", func() bool { return get(t, kube).Status.Capacity.Cpu().String() == "3" })
	if n.Profile().MHzPerCore != 2000 {
		t.Errorf("MHz per core %d", n.Profile().MHzPerCore)
	}

	// Somebody takes our taint off and puts another on.
	got = get(t, kube)
	got.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoExecute}}
	if _, err := kube.CoreV1().Nodes().Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	nomadtest.Eventually(t, 10*time.Second, "the taint is back beside the other", func() bool { return len(get(t, kube).Spec.Taints) == 2 })

	// Somebody deletes the node.
	if err := kube.CoreV1().Nodes().Delete(ctx, "burst", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	nomadtest.Eventually(t, 5*time.Second, "the node is registered again", func() bool {
		g := get(t, kube)
		return condition(g, corev1.NodeReady).Status == corev1.ConditionTrue && len(g.Spec.Taints) == 1
	})

	// Nomad goes: told at once, NotReady after a while, and back at once.
	src.set(false, time.Now(), client("a", 2000, 2))
	nomadtest.Eventually(t, 3*time.Second, "NomadReachable is false", func() bool {
		return condition(get(t, kube), ConditionNomadReachable).Status == corev1.ConditionFalse
	})
	if condition(get(t, kube), corev1.NodeReady).Status != corev1.ConditionTrue {
		t.Error("NotReady at once")
	}
	nomadtest.Eventually(t, 5*time.Second, "the node is NotReady", func() bool {
		c := condition(get(t, kube), corev1.NodeReady)
		return c.Status == corev1.ConditionFalse && c.Reason == ReasonNomadUnreachable
	})
	src.set(true, time.Now(), client("a", 2000, 2))
	nomadtest.Eventually(t, 3*time.Second, "the node is ready again", func() bool {
		return condition(get(t, kube), corev1.NodeReady).Status == corev1.ConditionTrue
	})
	expectEvents(t, rec, ReasonNomadUnreachable, ReasonNomadReachable)
}

func expectEvents(t *testing.T, rec *record.FakeRecorder, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case e := <-rec.Events:
			if !strings.Contains(e, w) {
				t.Errorf("event %q, want %s", e, w)
			}
		case <-time.After(time.Second):
			t.Errorf("no event %s", w)
		}
	}
}

func TestForeignNodeIsRefused(t *testing.T) {
	kube := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "burst"}})
	n, _ := newTestNode(kube, &stub{ok: true, ch: make(chan struct{})}, clock.RealClock{})
	err := n.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "belongs to another kubelet") {
		t.Errorf("Run: %v", err)
	}
}

func TestUnknownPool(t *testing.T) {
	kube := fake.NewClientset()
	src := &stub{ok: true, ch: make(chan struct{}, 1)}
	n, rec := newTestNode(kube, src, clock.RealClock{})
	start(t, n)
	nomadtest.Eventually(t, 10*time.Second, "the condition names the pool", func() bool {
		c := condition(get(t, kube), corev1.NodeReady)
		return c.Status == corev1.ConditionFalse && strings.Contains(c.Message, `no node pool "default"`)
	})
	expectEvents(t, rec, ReasonUnknownPool)
}

// A restart while Nomad is away keeps what the Node says of its capacity and
// of being ready.
func TestRestartDuringOutage(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Now())
	kube := fake.NewClientset()
	src := &stub{ok: true, pool: true, ch: make(chan struct{}, 1), clients: []ClientInfo{client("a", 2000, 2)}}
	n, _ := newTestNode(kube, src, clk)
	first, _ := n.build()
	if _, err := kube.CoreV1().Nodes().Create(context.Background(), first, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	again, _ := newTestNode(kube, &unsynced{stub{since: clk.Now(), ch: make(chan struct{}, 1)}}, clk)
	if err := again.adopt(context.Background()); err != nil {
		t.Fatal(err)
	}
	clk.Step(39 * time.Second)
	got, recheck := again.build()
	if condition(got, corev1.NodeReady).Status != corev1.ConditionTrue || got.Status.Capacity.Cpu().String() != "2" || recheck != time.Second {
		t.Errorf("ready %v, cpu %s, recheck %s", condition(got, corev1.NodeReady), got.Status.Capacity.Cpu(), recheck)
	}
	clk.Step(time.Second)
	got, _ = again.build()
	if condition(got, corev1.NodeReady).Status != corev1.ConditionFalse {
		t.Error("still ready")
	}
}

type unsynced struct{ stub }

func (*unsynced) Synced() bool { return false }
