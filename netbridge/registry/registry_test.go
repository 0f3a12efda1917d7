package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// open starts a real Consul with a fabric of 64 blocks and 62 overlay addresses.
func open(t *testing.T, acls bool) (*Registry, fabric.Settings, *consultest.Server) {
	t.Helper()
	netlab.Root(t)
	srv := consultest.Start(t, netlab.New(t, "consul"), acls)
	s := fabric.Settings{
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		BurstCIDR:    netip.MustParsePrefix("10.77.0.0/19"), HostCIDR: netip.MustParsePrefix("10.78.0.0/26"),
	}
	s.Complete()
	r := New(srv.Client, "test")
	if err := r.SetSettings(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return r, s, srv
}

func request(s fabric.Settings, n int) Request {
	return Request{
		ID: fabric.ID(fmt.Sprintf("nomad/%02d", n)), Settings: s, Blocks: 1, MTU: 1450,
		Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)}),
	}
}

func TestRegistry(t *testing.T) {
	r, s, srv := open(t, false)
	wipe := func(t *testing.T) {
		for _, dir := range []string{"blocks/", "hosts/", "nodes/nomad/", "nodes/k8s/", "seen/"} {
			if _, err := srv.Client.KV().DeleteTree(r.prefix+dir, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, *Registry, fabric.Settings, *api.KV)
	}{
		{"fifty claimants", fiftyClaimants},
		{"claim again", claimAgain},
		{"stolen", stolen},
		{"released blocks", releasedBlocks},
		{"released nodes", releasedNodes},
		{"removed records", removedRecords},
		{"all taken", allTaken},
		{"the last block", lastBlock},
		{"wiped", wiped},
		{"a second block", secondBlock},
		{"kubernetes node", kubernetesNode},
		{"settings", settingsStay},
		{"watch", watch},
		{"watch in parts", watchInParts},
	} {
		wipe(t)
		t.Run(c.name, func(t *testing.T) { c.test(t, r, s, srv.Client.KV()) })
	}
}

func fiftyClaimants(t *testing.T, r *Registry, s fabric.Settings, _ *api.KV) {
	const n = 50
	got := make([]fabric.Node, n)
	took := make([]time.Duration, n)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-start
			began := time.Now()
			var err error
			if got[i], err = r.Claim(ctx, request(s, i)); err != nil {
				t.Errorf("%d: %v", i, err)
			}
			took[i] = time.Since(began)
		})
	}
	close(start)
	all.Wait()
	blocks, hosts := map[netip.Prefix]int{}, map[netip.Addr]int{}
	for i, node := range got {
		if len(node.CIDRs) != 1 {
			t.Fatalf("%d has %v", i, node.CIDRs)
		}
		if j, taken := blocks[node.CIDRs[0]]; taken {
			t.Errorf("%d and %d have %s", i, j, node.CIDRs[0])
		}
		if j, taken := hosts[node.Host]; taken {
			t.Errorf("%d and %d have %s", i, j, node.Host)
		}
		blocks[node.CIDRs[0]], hosts[node.Host] = i, i
	}
	b, h, err := r.claims(t.Context())
	if err != nil || len(b) != n || len(h) != n {
		t.Errorf("%d blocks and %d hosts are recorded: %v", len(b), len(h), err)
	}
	slices.Sort(took)
	t.Logf("%d claimants of %d blocks at once: p50 %s, last %s", n, s.Blocks(), took[n/2], took[n-1])
}

// A node that comes back, however late, has what it had, and writes nothing.
func claimAgain(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	first, err := r.Claim(t.Context(), request(s, 1))
	if err != nil {
		t.Fatal(err)
	}
	_, before, err := kv.List(r.prefix, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Claim(t.Context(), request(s, 1))
	if err != nil || !again.Equal(first) {
		t.Errorf("%v, then %v: %v", first, again, err)
	}
	_, after, err := kv.List(r.prefix, nil)
	if err != nil || after.LastIndex != before.LastIndex {
		t.Errorf("claiming again wrote: index %d, then %d (%v)", before.LastIndex, after.LastIndex, err)
	}
	// Its record alone follows when its endpoint changes.
	moved := request(s, 1)
	moved.Endpoint = netip.MustParseAddr("192.0.2.200")
	again, err = r.Claim(t.Context(), moved)
	if err != nil || again.Endpoint != moved.Endpoint || !slices.Equal(again.CIDRs, first.CIDRs) || again.Host != first.Host {
		t.Errorf("%v: %v", again, err)
	}
}

func put(t *testing.T, kv *api.KV, key string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		_, err = kv.Put(&api.KVPair{Key: key, Value: data}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func stolen(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	mine, err := r.Claim(t.Context(), request(s, 1))
	if err != nil {
		t.Fatal(err)
	}
	theft := owner{Node: "nomad/thief", State: Active}
	put(t, kv, r.prefix+blockKey(mine.CIDRs[0]), theft)
	q := request(s, 1)
	q.Held, q.HeldHost = mine.CIDRs, mine.Host
	if _, err := r.Claim(t.Context(), q); !errors.Is(err, fabric.ErrOwned) || !strings.Contains(err.Error(), "nomad/thief") {
		t.Errorf("a stolen block gives %v", err)
	}
	blocks, _, err := r.claims(t.Context())
	if err != nil || blocks[mine.CIDRs[0]].Node != "nomad/thief" || len(blocks) != 1 {
		t.Errorf("it was written over: %v %v", blocks, err)
	}
	// Without pods on it, another block will do.
	q.Held = nil
	other, err := r.Claim(t.Context(), q)
	if err != nil || other.CIDRs[0] == mine.CIDRs[0] {
		t.Errorf("%v %v", other, err)
	}
	put(t, kv, r.prefix+"hosts/"+mine.Host.String(), theft)
	if _, err := r.Claim(t.Context(), q); !errors.Is(err, fabric.ErrOwned) {
		t.Errorf("a stolen overlay address gives %v", err)
	}
}

// Never used blocks come first, then the longest released.
func releasedBlocks(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	now := time.Now().UTC()
	for i := range s.Blocks() {
		o := owner{Node: "nomad/old", State: Released, Since: now.Add(-time.Duration(i) * time.Hour)}
		if i == 7 {
			continue // never used
		}
		put(t, kv, r.prefix+blockKey(s.Block(i)), o)
	}
	for n, want := range []int{7, s.Blocks() - 1, s.Blocks() - 2} {
		node, err := r.Claim(t.Context(), request(s, n))
		if err != nil || node.CIDRs[0] != s.Block(want) {
			t.Errorf("claim %d is %v, not %s: %v", n, node.CIDRs, s.Block(want), err)
		}
	}
}

// What a node had is another's only after it was released, and is its own again
// when it comes back before anybody wanted it.
func releasedNodes(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	q := request(s, 1)
	had, err := r.Claim(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	record := func() (Record, bool) {
		t.Helper()
		all, err := r.Records(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		rec, ok := all[q.ID]
		return rec, ok
	}
	unseen, _ := record()
	if err := r.Release(t.Context(), unseen); err == nil || !strings.Contains(err.Error(), "never seen") {
		t.Errorf("a node that was never seen: %v", err)
	}
	seen := func() {
		t.Helper()
		if err := r.Seen(t.Context(), q.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	seen()
	old, _ := record()
	if old.Seen.IsZero() || time.Since(old.Seen) > time.Minute {
		t.Errorf("seen at %s", old.Seen)
	}
	if err := r.Seen(t.Context(), q.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	if again, _ := record(); again.seenIndex != old.seenIndex {
		t.Error("it is written again before its time")
	}
	seen()
	if err := r.Release(t.Context(), old); !errors.Is(err, ErrOutrun) {
		t.Errorf("a node that lives is released: %v", err)
	}
	if back, err := r.Claim(t.Context(), q); err != nil || !back.Equal(had) {
		t.Errorf("after a release that did not happen: %v %v", back, err)
	}
	rec, _ := record()
	if err := r.Release(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if _, there := record(); there {
		t.Error("the record is still there")
	}
	blocks, hosts, err := r.claims(t.Context())
	if err != nil || blocks[had.CIDRs[0]].State != Released || hosts[had.Host].State != Released {
		t.Errorf("%v %v %v", blocks, hosts, err)
	}
	q.Held, q.HeldHost = had.CIDRs, had.Host
	if back, err := r.Claim(t.Context(), q); err != nil || !back.Equal(had) {
		t.Errorf("a released node comes back as %v, not %v: %v", back, had, err)
	}
	if blocks, hosts, err = r.claims(t.Context()); err != nil || blocks[had.CIDRs[0]].State != Active || hosts[had.Host].State != "" {
		t.Errorf("%v %v %v", blocks, hosts, err)
	}
	// What another had in between, and has no more, is nobody's.
	theirs := owner{Node: "nomad/between", State: Released, Since: time.Now().UTC()}
	put(t, kv, r.prefix+blockKey(had.CIDRs[0]), theirs)
	put(t, kv, r.prefix+"hosts/"+had.Host.String(), theirs)
	if b, h, err := r.Owners(t.Context()); err != nil || len(b)+len(h) != 0 {
		t.Errorf("what is released has owners: %v %v %v", b, h, err)
	}
	if back, err := r.Claim(t.Context(), q); err != nil || !back.Equal(had) {
		t.Errorf("a node comes back to what another has released as %v: %v", back, err)
	}
	// All overlay addresses are used: the longest released is next.
	now := time.Now().UTC()
	for i := range s.Hosts() {
		put(t, kv, r.prefix+"hosts/"+s.Host(i).String(), owner{Node: "nomad/old", State: Released, Since: now.Add(-time.Duration(i%40) * time.Hour)})
	}
	if other, err := r.Claim(t.Context(), request(s, 2)); err != nil || other.Host != s.Host(39) {
		t.Errorf("%v %v", other, err)
	}
}

// What a node has whose record somebody has removed, as the doctor proposes for a
// machine that is gone, is released as well.
func removedRecords(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	q := request(s, 1)
	had, err := r.Claim(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Seen(t.Context(), q.ID, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Delete(r.prefix+"nodes/"+string(q.ID), nil); err != nil {
		t.Fatal(err)
	}
	records, err := r.Records(t.Context())
	rec, ok := records[q.ID]
	if err != nil || !ok || time.Since(rec.Seen) > time.Minute {
		t.Fatalf("%v %v", records, err)
	}
	// Not when it comes back.
	if _, err := r.Claim(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), rec); !errors.Is(err, ErrOutrun) {
		t.Errorf("a node whose record is there again: %v", err)
	}
	if back, err := r.Claim(t.Context(), q); err != nil || back.Host != had.Host {
		t.Errorf("%v, not %v: %v", back, had, err)
	}
	if _, err := kv.Delete(r.prefix+"nodes/"+string(q.ID), nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if b, h, err := r.Owners(t.Context()); err != nil || len(b)+len(h) != 0 {
		t.Errorf("%v %v are left: %v", b, h, err)
	}
	if records, err := r.Records(t.Context()); err != nil || len(records) != 0 {
		t.Errorf("%v %v", records, err)
	}
}

func allTaken(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	for i := range s.Blocks() {
		put(t, kv, r.prefix+blockKey(s.Block(i)), owner{Node: "nomad/other", State: Active})
	}
	began := time.Now()
	_, err := r.Claim(t.Context(), request(s, 1))
	if err == nil || !strings.Contains(err.Error(), "no block is left of 10.77.0.0/19: 64 of 64 are taken") || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

// A node that wants one more than there is has what it has, and its record: that is
// how the others find its pods.
func lastBlock(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	q := request(s, 1)
	one, err := r.Claim(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.Blocks() {
		if b := s.Block(i); b != one.CIDRs[0] {
			put(t, kv, r.prefix+blockKey(b), owner{Node: "nomad/other", State: Active})
		}
	}
	if _, err := kv.Delete(r.prefix+"nodes/"+string(q.ID), nil); err != nil {
		t.Fatal(err)
	}
	q.Blocks, q.Held, q.HeldHost = 2, one.CIDRs, one.Host
	if again, err := r.Claim(t.Context(), q); err != nil || !again.Equal(one) {
		t.Errorf("%v, not %v: %v", again, one, err)
	}
	if l, err := r.List(t.Context(), q.ID); err != nil || l.Incomplete != nil {
		t.Errorf("its record is not there: %v %v", l.Incomplete, err)
	}
}

// A store that lost its records gets back what the nodes still have.
func wiped(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	q := request(s, 1)
	q.Held, q.HeldHost = []netip.Prefix{s.Block(40)}, s.Host(33)
	node, err := r.Claim(t.Context(), q)
	if err != nil || !slices.Equal(node.CIDRs, q.Held) || node.Host != q.HeldHost {
		t.Errorf("%v %v", node, err)
	}
}

func secondBlock(t *testing.T, r *Registry, s fabric.Settings, _ *api.KV) {
	q := request(s, 1)
	one, err := r.Claim(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	q.Blocks = 2
	two, err := r.Claim(t.Context(), q)
	if err != nil || len(two.CIDRs) != 2 || !slices.Contains(two.CIDRs, one.CIDRs[0]) {
		t.Errorf("%v, then %v: %v", one, two, err)
	}
}

func kubernetesNode(t *testing.T, r *Registry, s fabric.Settings, _ *api.KV) {
	q := Request{ID: "k8s/a", Settings: s, MTU: 1450, Endpoint: netip.MustParseAddr("192.0.2.9"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}}
	node, err := r.Claim(t.Context(), q)
	if err != nil || !slices.Equal(node.CIDRs, q.PodCIDRs) || !s.HostCIDR.Contains(node.Host) {
		t.Errorf("%v %v", node, err)
	}
	q.ID, q.PodCIDRs = "k8s/b", []netip.Prefix{netip.MustParsePrefix("10.245.0.0/24")}
	if _, err := r.Claim(t.Context(), q); err == nil || !strings.Contains(err.Error(), "in none of clusterCIDRs") {
		t.Errorf("a range outside the cluster's gives %v", err)
	}
}

func settingsStay(t *testing.T, r *Registry, s fabric.Settings, _ *api.KV) {
	if _, err := r.Claim(t.Context(), request(s, 1)); err != nil {
		t.Fatal(err)
	}
	other := s
	other.BlockBits = 26
	if err := r.SetSettings(t.Context(), other); err == nil || !strings.Contains(err.Error(), "while there are claims (2)") {
		t.Errorf("blockBits under claims: %v", err)
	}
	other = s
	other.Backend = fabric.BackendWireGuard
	if err := r.SetSettings(t.Context(), other); err == nil || !strings.Contains(err.Error(), "backend cannot change while there are claims (2)") {
		t.Errorf("another backend under claims: %v", err)
	}
	other = s
	other.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/16")
	if err := r.SetSettings(t.Context(), other); err != nil {
		t.Error(err)
	}
	node := Request{ID: "k8s/a", Settings: s, MTU: 1450, Endpoint: netip.MustParseAddr("192.0.2.9"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}}
	if _, err := r.Claim(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	other.ClusterCIDRs = nil // left out of the file
	if err := r.SetSettings(t.Context(), other); err == nil || !strings.Contains(err.Error(), "node k8s/a would not be followed") {
		t.Errorf("clusterCIDRs without a node's range: %v", err)
	}
	other.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20"), netip.MustParsePrefix("10.250.0.0/16")}
	if err := r.SetSettings(t.Context(), other); err != nil {
		t.Errorf("other clusterCIDRs with all ranges: %v", err)
	}
	if _, err := New(r.client, "none").Settings(t.Context()); !errors.Is(err, ErrNoSettings) {
		t.Errorf("a fabric that nobody set up: %v", err)
	}
}

// follow runs a watcher and hands out its lists.
func follow(t *testing.T, r *Registry, self fabric.ID, parts int) (<-chan List, <-chan error) {
	lists, healths := make(chan List, 100), make(chan error, 1000)
	w := &Watcher{Registry: r, Self: self, Parts: parts, Handle: func(l List) { lists <- l }, Health: func(err error) { healths <- err }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return lists, healths
}

// until waits for a list that is as it should be.
func until(t *testing.T, lists <-chan List, what string, ok func(List) bool) List {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case l := <-lists:
			if ok(l) {
				return l
			}
		case <-limit:
			t.Fatalf("no list with %s", what)
		}
	}
}

func watch(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	if _, err := r.Claim(t.Context(), request(s, 1)); err != nil {
		t.Fatal(err)
	}
	lists, _ := follow(t, r, "nomad/01", 1)
	until(t, lists, "this node", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 1 })
	var took []time.Duration
	for i := 2; i < 12; i++ {
		began := time.Now()
		if _, err := r.Claim(t.Context(), request(s, i)); err != nil {
			t.Fatal(err)
		}
		until(t, lists, "the new node", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == i })
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from a claim's beginning to the list at another: p50 %s, max %s", took[len(took)/2], took[len(took)-1])
	broken := func(want string) {
		t.Helper()
		until(t, lists, want, func(l List) bool { return l.Incomplete != nil && strings.Contains(l.Incomplete.Error(), want) })
	}
	put(t, kv, r.prefix+"nodes/nomad/99", "no record")
	broken("1 records cannot be read")
	if _, err := kv.DeleteTree(r.prefix+"nodes/", nil); err != nil {
		t.Fatal(err)
	}
	broken(".keep is missing")
	put(t, kv, r.prefix+sentinel, struct{}{})
	broken("own record, nodes/nomad/01, is missing")
	if _, err := r.Claim(t.Context(), request(s, 1)); err != nil {
		t.Fatal(err)
	}
	until(t, lists, "this node again", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 1 })
}

// In parts nobody is woken by the sentinel: what is missing is gone only if it is there.
func watchInParts(t *testing.T, r *Registry, s fabric.Settings, kv *api.KV) {
	for i := range 12 {
		if _, err := r.Claim(t.Context(), request(s, i)); err != nil {
			t.Fatal(err)
		}
	}
	lists, _ := follow(t, r, "nomad/01", Parts)
	until(t, lists, "all nodes", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 12 })
	began := time.Now()
	if _, err := r.Claim(t.Context(), request(s, 12)); err != nil {
		t.Fatal(err)
	}
	until(t, lists, "the new node", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 13 })
	t.Logf("from a claim's beginning to the list at another: %s", time.Since(began))
	if _, err := kv.Delete(r.prefix+"nodes/nomad/05", nil); err != nil {
		t.Fatal(err)
	}
	until(t, lists, "one node less", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 12 })
	put(t, kv, r.prefix+"nodes/k8s/f9", "no record")
	until(t, lists, "a broken record", func(l List) bool { return l.Incomplete != nil && len(l.Broken) == 1 })
	if _, err := kv.Delete(r.prefix+"nodes/k8s/f9", nil); err != nil {
		t.Fatal(err)
	}
	until(t, lists, "peace", func(l List) bool { return l.Incomplete == nil })
	keys, _, err := kv.Keys(r.prefix+"nodes/", "", nil)
	if err != nil || !strings.HasSuffix(keys[0], sentinel) {
		t.Fatal(keys, err)
	}
	for _, key := range keys {
		if _, err := kv.Delete(key, nil); err != nil {
			t.Fatal(err)
		}
	}
	until(t, lists, "nothing", func(l List) bool {
		if l.Incomplete == nil && len(l.Nodes) < 12 {
			t.Errorf("an emptied Consul brings a complete list of %d nodes", len(l.Nodes))
		}
		return len(l.Nodes) == 0
	})
	// Its own record alone is not all there was.
	if _, err := r.Claim(t.Context(), request(s, 1)); err != nil {
		t.Fatal(err)
	}
	until(t, lists, "this node alone", func(l List) bool {
		return len(l.Nodes) == 1 && l.Incomplete != nil && strings.Contains(l.Incomplete.Error(), ".keep is missing")
	})
	put(t, kv, r.prefix+sentinel, struct{}{})
	until(t, lists, "a complete list again", func(l List) bool { return l.Incomplete == nil && len(l.Nodes) == 1 })
}

func TestMayDivide(t *testing.T) {
	if err := MayDivide("nomad/0b7d3c52-0000-4000-8000-000000000001"); err != nil {
		t.Error(err)
	}
	if err := MayDivide("nomad/machine"); err == nil || !strings.Contains(err.Error(), "machine") {
		t.Error(err)
	}
}

// A server that was away and comes back, and one that only hangs, never bring a
// list that takes something away; changes come again soon after.
func TestWatchThroughOutages(t *testing.T) {
	for _, parts := range []int{1, Parts} {
		t.Run(fmt.Sprint(parts), func(t *testing.T) { throughOutages(t, parts) })
	}
}

func throughOutages(t *testing.T, parts int) {
	r, s, srv := open(t, false)
	if _, err := r.Claim(t.Context(), request(s, 1)); err != nil {
		t.Fatal(err)
	}
	lists, healths := follow(t, r, "nomad/01", parts)
	until(t, lists, "this node", func(l List) bool { return l.Incomplete == nil })
	for i, outage := range []struct {
		name     string
		down, up func()
		atMost   time.Duration
	}{
		{"killed", srv.Stop, srv.Up, 15 * time.Second},
		{"frozen", srv.Freeze, srv.Thaw, 15 * time.Second},
	} {
		for len(healths) > 0 {
			<-healths
		}
		outage.down()
		for err := range healths {
			if err != nil {
				break
			}
		}
		outage.up()
		began := time.Now()
		if _, err := r.Claim(t.Context(), request(s, 2+i)); err != nil {
			t.Fatal(err)
		}
		limit := time.After(outage.atMost)
		for seen := false; !seen; {
			select {
			case l := <-lists:
				if l.Incomplete == nil && len(l.Nodes) < 1+i {
					t.Errorf("%s: a complete list with %d nodes", outage.name, len(l.Nodes))
				}
				seen = len(l.Nodes) == 2+i
			case <-limit:
				t.Fatalf("%s: no list after %s", outage.name, outage.atMost)
			}
		}
		t.Logf("%s: the next change was seen %s after Consul was back", outage.name, time.Since(began))
	}
}

// A token whose rights shrink makes lists shorter, never complete.
// A server that lags behind is complete in its own eyes: the list to begin with, and
// after a failure or a lesser index, is the leader's.
func TestOnlyTheLeaderTakesAway(t *testing.T) {
	type asked struct{ index, stale string }
	requests := make(chan asked, 100)
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !strings.HasSuffix(req.URL.Path, "/nodes/") {
			return // a ping
		}
		q := req.URL.Query()
		stale := "no"
		if q.Has("stale") {
			stale = "yes"
		}
		select {
		case requests <- asked{q.Get("index"), stale}:
		default:
		}
		index := "7"
		switch n.Add(1) {
		case 2: // a server that had not heard of it yet
			index = "5"
		case 4:
			http.Error(w, "rpc error: EOF", http.StatusInternalServerError)
			return
		}
		w.Header().Set("X-Consul-Index", index)
		w.Header().Set("X-Consul-KnownLeader", "true")
		fmt.Fprint(w, "[]")
	}))
	defer srv.Close()
	c, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	follow(t, New(c, "test"), "nomad/01", 1)
	for i, want := range []asked{{"", "no"}, {"7", "yes"}, {"", "no"}, {"7", "yes"}, {"", "no"}} {
		select {
		case got := <-requests:
			if got != want {
				t.Errorf("request %d: index %q, stale %s, want %q and %s", i, got.index, got.stale, want.index, want.stale)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no request %d", i)
		}
	}
}

func TestListsThatRightsHaveCut(t *testing.T) {
	r, s, srv := open(t, true)
	for i := range 3 {
		if _, err := r.Claim(t.Context(), request(s, i)); err != nil {
			t.Fatal(err)
		}
	}
	policies := 0
	policy := func(rules string) *Registry {
		policies++
		p, _, err := srv.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: fmt.Sprint("p", policies), Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := srv.Client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: p.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := api.NewClient(&api.Config{Address: srv.Address, Token: token.SecretID})
		if err != nil {
			t.Fatal(err)
		}
		return New(c, "test")
	}
	// The policy that deploy has suffices.
	deployed, err := os.ReadFile("../../deploy/consul/netbridge-agent.hcl")
	if err != nil {
		t.Fatal(err)
	}
	full := policy(strings.ReplaceAll(string(deployed), "/default/", "/test/"))
	if _, err := full.Claim(t.Context(), request(s, 3)); err != nil {
		t.Errorf("with the deployed policy: %v", err)
	}
	all, _ := follow(t, full, "nomad/03", 1)
	if l := until(t, all, "anything", func(List) bool { return true }); l.Incomplete != nil || len(l.Nodes) != 4 {
		t.Errorf("with the deployed policy: %d nodes, %v", len(l.Nodes), l.Incomplete)
	}
	if err := full.SetSettings(t.Context(), s); err == nil {
		t.Error("an agent may write the settings")
	}
	// The policy of a Kubernetes node's agent, on a Nomad client: that no right is there
	// is told, at once, and is nobody else's write that one tries to outrun.
	wrong := policy(strings.NewReplacer("/default/", "/test/", "nodes/nomad/", "nodes/k8s/").Replace(string(deployed)))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := wrong.Claim(ctx, request(s, 4)); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "netbridge/v1/test/nodes/nomad/04") {
		t.Errorf("without the right to write its record: %v", err)
	}
	if blocks, _, err := full.claims(t.Context()); err != nil || len(blocks) != 4 {
		t.Errorf("a claim that was denied has left something: %v %v", blocks, err)
	}
	part := policy(`key_prefix "netbridge/v1/test/nodes/.keep" { policy = "read" } key_prefix "netbridge/v1/test/nodes/nomad/01" { policy = "read" }
key_prefix "netbridge/v1/test/blocks/10.77.0" { policy = "read" }`)
	lists, _ := follow(t, part, "nomad/01", 1)
	l := until(t, lists, "anything", func(List) bool { return true })
	if l.Incomplete == nil || !strings.Contains(l.Incomplete.Error(), "may not read all") {
		t.Errorf("%d of 3 nodes are taken for all: %v", len(l.Nodes), l.Incomplete)
	}
	if _, _, err := part.claims(t.Context()); err == nil || !strings.Contains(err.Error(), "may not read all") {
		t.Errorf("claims that a token may not see look free: %v", err)
	}
	// No rights at all.
	none, healths := follow(t, policy(`key_prefix "other/" { policy = "read" }`), "nomad/01", 1)
	for limit, told := time.After(30*time.Second), false; !told; {
		select {
		case l := <-none:
			if l.Incomplete == nil {
				t.Error("an empty list is complete")
			}
			told = true
		case err := <-healths:
			told = err != nil
		case <-limit:
			t.Fatal("neither a list nor an error")
		}
	}
}
