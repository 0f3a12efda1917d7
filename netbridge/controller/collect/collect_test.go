package collect

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// A Node that is made anew has another UID and may have the range that it had: its
// former record, which all follow, gives way to the new one, not after a day.
func TestARangeThatAnotherNodeHasNow(t *testing.T) {
	netlab.Root(t)
	srv := consultest.Start(t, netlab.New(t, "consul"), false)
	s := fabric.Settings{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	s.Complete()
	reg := registry.New(srv.Client, "test")
	if err := reg.SetSettings(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	joins := func(uid string, last byte, cidr string) {
		t.Helper()
		q := registry.Request{ID: fabric.ID("k8s/" + uid), Settings: s, MTU: 1450, Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, last}),
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
		if _, err := reg.Claim(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		if err := reg.Seen(t.Context(), q.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	node := func(name, uid string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
	}
	add := func(n *corev1.Node) {
		t.Helper()
		if err := nodes.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	c := &Collector{Registry: reg, Nodes: corelisters.NewNodeLister(nodes), After: 24 * time.Hour,
		Guard: hold.Guard{Hold: time.Hour}, Metrics: metrics.New(), Log: hclog.NewNullLogger()}
	expect := func(what string, want ...fabric.ID) {
		t.Helper()
		if err := c.pass(t.Context()); err != nil {
			t.Fatal(what, err)
		}
		records, err := reg.Records(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Sorted(maps.Keys(records)); !slices.Equal(got, want) {
			t.Errorf("%s: the records are %v, want %v", what, got, want)
		}
	}
	joins("former", 1, "10.244.1.0/24")
	joins("other", 2, "10.244.2.0/24")
	add(node("worker-2", "other"))
	expect("a Node is away, and nobody has its range", "k8s/former", "k8s/other")
	joins("again", 1, "10.244.1.0/24")
	expect("a record alone, of no Node that is there", "k8s/again", "k8s/former", "k8s/other")
	add(node("worker-1", "former"))
	expect("both want it, and the former Node is there", "k8s/again", "k8s/former", "k8s/other")
	add(node("worker-1", "again"))
	expect("the Node was made anew", "k8s/again", "k8s/other")
	blocks, hosts, err := reg.Owners(t.Context())
	if err != nil || len(blocks) != 0 || len(hosts) != 2 {
		t.Errorf("owners: %v %v %v", blocks, hosts, err)
	}
}
