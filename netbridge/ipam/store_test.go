package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func block(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }

func owner(n int) Owner { return Owner{Container: fmt.Sprint("alloc-", n), Interface: "eth0"} }

// store has a clock of its own.
func store(t *testing.T) (*Store, *time.Time) {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Minute) // later than the files
	s.now = func() time.Time { return now }
	return s, &now
}

func give(t *testing.T, s *Store, n int, blocks []netip.Prefix) netip.Addr {
	t.Helper()
	a, b, err := s.Add(owner(n), blocks)
	if err != nil {
		t.Fatal(err)
	}
	if !b.Contains(a) {
		t.Errorf("%s is not in %s", a, b)
	}
	return a
}

func TestAllAddressesOnceEach(t *testing.T) {
	s, _ := store(t)
	blocks := append(block("10.77.1.0/28"), block("10.77.9.0/29")...)
	seen := map[netip.Addr]bool{}
	for i := range Size(blocks) {
		a := give(t, s, i, blocks)
		if seen[a] {
			t.Errorf("%s twice", a)
		}
		seen[a] = true
	}
	if len(seen) != 13+5 {
		t.Errorf("%d addresses of a /28 and a /29", len(seen))
	}
	for _, never := range []string{"10.77.1.0", "10.77.1.1", "10.77.1.15", "10.77.9.0", "10.77.9.1", "10.77.9.7"} {
		if seen[netip.MustParseAddr(never)] {
			t.Errorf("%s is given", never)
		}
	}
	if _, _, err := s.Add(owner(99), blocks); err == nil || !strings.Contains(err.Error(), "all 18 addresses") {
		t.Error(err)
	}
}

func TestAnOwnerKeepsItsAddress(t *testing.T) {
	s, _ := store(t)
	first := give(t, s, 1, block("10.77.1.0/25"))
	give(t, s, 2, block("10.77.1.0/25"))
	if again := give(t, s, 1, block("10.77.1.0/25")); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	// Another store, as of another process, knows it, too.
	o, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if again := give(t, o, 1, block("10.77.1.0/25")); again != first {
		t.Errorf("%s, then %s", first, again)
	}
	if _, _, err := s.Add(owner(1), block("10.77.5.0/25")); err == nil || !strings.Contains(err.Error(), "none of this node's blocks") {
		t.Error(err)
	}
}

func TestReleasedAddressesRest(t *testing.T) {
	s, now := store(t)
	blocks := block("10.77.1.0/29") // 5
	for i := range 5 {
		give(t, s, i, blocks)
	}
	release := func(n int) {
		t.Helper()
		if err := s.Release(owner(n)); err != nil {
			t.Fatal(err)
		}
	}
	release(3)
	*now = now.Add(time.Second)
	release(1)
	// There are no others: the longest released first.
	if a := give(t, s, 13, blocks); a.String() != "10.77.1.5" {
		t.Error(a)
	}
	release(2)
	*now = now.Add(Quarantine)
	// Both have rested: the next in turn after .5, which is .3 or .4.
	if a := give(t, s, 11, blocks); a.String() != "10.77.1.3" {
		t.Error(a)
	}
	release(99) // has none
}

func TestManyAtOnce(t *testing.T) {
	s, _ := store(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]int{}
	for i := range 100 {
		all.Go(func() {
			o, err := Open(s.dir)
			if err != nil {
				t.Error(err)
				return
			}
			a, _, err := o.Add(owner(i), block("10.77.1.0/25"))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			seen[a]++
			mu.Unlock()
		})
	}
	all.Wait()
	if len(seen) != 100 {
		t.Errorf("%d addresses for 100", len(seen))
	}
}

func TestFence(t *testing.T) {
	s, _ := store(t)
	if err := s.Fence("block 10.77.1.0/25 is another's"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Add(owner(1), block("10.77.1.0/25")); !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "another's") {
		t.Error(err)
	}
	for range 2 {
		if err := s.Fence(""); err != nil {
			t.Fatal(err)
		}
	}
	give(t, s, 1, block("10.77.1.0/25"))
}

func TestCollection(t *testing.T) {
	s, now := store(t)
	for i := range 4 {
		give(t, s, i, block("10.77.1.0/25"))
	}
	// What a power cut left without content is nobody's.
	if err := os.WriteFile(filepath.Join(s.dir, usedDir, "10.77.1.100"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := Collector{Store: s}
	collect := func(want int, live ...string) {
		t.Helper()
		m := map[string]bool{}
		for _, l := range live {
			m[l] = true
		}
		freed, err := c.Collect(m)
		if err != nil || len(freed) != want {
			t.Errorf("freed %v, want %d: %v", freed, want, err)
		}
	}
	collect(0, "alloc-0", "alloc-1")
	*now = now.Add(Grace - time.Second)
	// One of them is listed after all, as a new allocation is: it starts anew.
	collect(0, "alloc-0", "alloc-1", "alloc-2")
	*now = now.Add(time.Second)
	collect(2, "alloc-0", "alloc-1")
	*now = now.Add(Grace)
	collect(1, "alloc-0", "alloc-1")
	entries, err := s.Entries()
	if err != nil || len(entries) != 2 {
		t.Error(entries, err)
	}
	// Nomad does not list it any more, and its network is still there.
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := Owner{Container: "alloc-9", Interface: "eth0", Netns: netns + "-before"}
	first, _, err := s.Add(o, block("10.77.1.0/25"))
	if err != nil {
		t.Fatal(err)
	}
	// After a restart of the machine it has another one.
	o.Netns = netns
	if again, _, err := s.Add(o, block("10.77.1.0/25")); err != nil || again != first {
		t.Error(first, again, err)
	}
	for range 3 {
		collect(0, "alloc-0", "alloc-1")
		*now = now.Add(Grace)
	}
	if err := os.Remove(netns); err != nil {
		t.Fatal(err)
	}
	collect(0, "alloc-0", "alloc-1")
	*now = now.Add(Grace)
	collect(1, "alloc-0", "alloc-1")
}
