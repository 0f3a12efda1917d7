package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// Quarantine is how long an address that was given back is left alone, while
// there are others: peers, resolvers and EndpointSlices may still mean the pod
// that had it.
const Quarantine = time.Minute

const (
	usedDir     = "used"
	releasedDir = "released"
	lockFile    = "lock"
	fenceFile   = "fenced"
	nextFile    = "next"
	partial     = ".new-"
)

// Owner is whose an address is, the content of its file.
type Owner struct {
	// Container is the CNI container ID, which Nomad makes the allocation's.
	Container string `json:"container"`
	Interface string `json:"interface"`
	// Network is the CNI network's name, for a reader.
	Network string `json:"network,omitempty"`
	// Netns is the file of the pod's network namespace: while it is there, the pod is
	// taken to live.
	Netns string `json:"netns,omitempty"`
}

func (o Owner) is(p Owner) bool { return o.Container == p.Container && o.Interface == p.Interface }

// Entry is one address that is given.
type Entry struct {
	Address netip.Addr
	Owner   Owner
	Since   time.Time
}

// Store is the directory. Every call takes its lock, which dies with the process.
type Store struct {
	dir string
	now func() time.Time
}

// Open makes the directories.
func Open(dir string) (*Store, error) {
	for _, d := range []string{usedDir, releasedDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("open the address store: %w", err)
		}
	}
	return &Store{dir, time.Now}, nil
}

// Dir is where the store is.
func (s *Store) Dir() string { return s.dir }

// Used is the directory of the addresses that are given, in which each of them appears
// as a file.
func (s *Store) Used() string { return s.path(usedDir) }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// locked runs f as the only one on this machine.
func (s *Store) locked(f func() error) error {
	l, err := os.OpenFile(s.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock the address store: %w", err)
	}
	defer l.Close() // unlocks
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the address store: %w", err)
	}
	return f()
}

// ErrFenced says that the node must not give addresses.
var ErrFenced = errors.New("no address is given")

// Add returns the owner's address, the one it has or a new one of the blocks.
func (s *Store) Add(o Owner, blocks []netip.Prefix) (addr netip.Addr, block netip.Prefix, err error) {
	err = s.locked(func() error {
		if reason, err := os.ReadFile(s.path(fenceFile)); err == nil {
			return fmt.Errorf("%w: %s", ErrFenced, reason)
		}
		entries, err := s.entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Owner.is(o) {
				if block = within(blocks, e.Address); !block.IsValid() {
					return fmt.Errorf("the address %s that %s has is in none of this node's blocks %v", e.Address, o.Container, blocks)
				}
				addr = e.Address
				if e.Owner.Netns != o.Netns { // another one after a restart of the machine
					return s.take(addr, o)
				}
				return nil
			}
		}
		if addr, err = s.free(entries, blocks); err != nil {
			return err
		}
		block = within(blocks, addr)
		return s.take(addr, o)
	})
	return addr, block, err
}

func within(blocks []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, b := range blocks {
		if b.Contains(a) {
			return b
		}
	}
	return netip.Prefix{}
}

// free goes round: the next after the last given, so that an address is used
// again as late as can be; then, when all others are used, the longest released.
func (s *Store) free(entries []Entry, blocks []netip.Prefix) (netip.Addr, error) {
	used := map[netip.Addr]bool{}
	for _, e := range entries {
		used[e.Address] = true
	}
	released, err := s.released()
	if err != nil {
		return netip.Addr{}, err
	}
	all := addresses(blocks)
	if len(all) == 0 {
		return netip.Addr{}, errors.New("this node has no blocks")
	}
	start := 0
	if last, err := os.ReadFile(s.path(nextFile)); err == nil {
		if a, err := netip.ParseAddr(string(last)); err == nil {
			start = slices.Index(all, a) + 1
		}
	}
	var oldest netip.Addr
	for i := range all {
		a := all[(start+i)%len(all)]
		if used[a] {
			continue
		}
		at, resting := released[a]
		if !resting || s.now().Sub(at) >= Quarantine {
			return a, nil
		}
		if !oldest.IsValid() || at.Before(released[oldest]) {
			oldest = a
		}
	}
	if oldest.IsValid() {
		return oldest, nil
	}
	return netip.Addr{}, fmt.Errorf("all %d addresses of this node's blocks %v are used", len(all), blocks)
}

// addresses leaves out a block's own, its gateway and its last.
func addresses(blocks []netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, b := range blocks {
		for a := fabric.Gateway(b).Next(); b.Contains(a.Next()); a = a.Next() {
			all = append(all, a)
		}
	}
	return all
}

// Size is how many pods the blocks have room for.
func Size(blocks []netip.Prefix) int { return len(addresses(blocks)) }

// take makes the file appear with its content: killed in between, it is not
// there, and nobody has been told the address.
func (s *Store) take(a netip.Addr, o Owner) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	tmp := s.path(partial + a.String())
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("take %s: %w", a, err)
	}
	if err := os.Rename(tmp, s.path(usedDir, a.String())); err != nil {
		return fmt.Errorf("take %s: %w", a, err)
	}
	_ = os.Remove(s.path(releasedDir, a.String()))
	// Only the order hangs on it.
	_ = os.WriteFile(s.path(nextFile), []byte(a.String()), 0o644)
	return nil
}

// Release gives back what the owner has; none is no error.
func (s *Store) Release(o Owner) error {
	return s.locked(func() error {
		entries, err := s.entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Owner.is(o) {
				if err := s.release(e.Address); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (s *Store) release(a netip.Addr) error {
	to := s.path(releasedDir, a.String())
	if err := os.Rename(s.path(usedDir, a.String()), to); err != nil {
		return fmt.Errorf("release %s: %w", a, err)
	}
	now := s.now()
	return os.Chtimes(to, now, now)
}

// Find returns what the owner has.
func (s *Store) Find(o Owner) (netip.Addr, bool, error) {
	entries, err := s.Entries()
	if err != nil {
		return netip.Addr{}, false, err
	}
	for _, e := range entries {
		if e.Owner.is(o) {
			return e.Address, true, nil
		}
	}
	return netip.Addr{}, false, nil
}

// Entries lists what is given.
func (s *Store) Entries() (entries []Entry, err error) {
	err = s.locked(func() error {
		entries, err = s.entries()
		return err
	})
	return entries, err
}

func (s *Store) entries() ([]Entry, error) {
	files, err := os.ReadDir(s.path(usedDir))
	if err != nil {
		return nil, fmt.Errorf("list the address store: %w", err)
	}
	var entries []Entry
	for _, f := range files {
		a, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(s.path(usedDir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("read the address store: %w", err)
		}
		e := Entry{Address: a}
		if info, err := f.Info(); err == nil {
			e.Since = info.ModTime()
		}
		// What a power cut left empty is nobody's, and still used until the garbage
		// collection.
		_ = json.Unmarshal(data, &e.Owner)
		entries = append(entries, e)
	}
	return entries, nil
}

func (s *Store) released() (map[netip.Addr]time.Time, error) {
	files, err := os.ReadDir(s.path(releasedDir))
	if err != nil {
		return nil, fmt.Errorf("list the address store: %w", err)
	}
	at := map[netip.Addr]time.Time{}
	for _, f := range files {
		a, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue
		}
		if info, err := f.Info(); err == nil {
			at[a] = info.ModTime()
		}
	}
	return at, nil
}

// Fence refuses further addresses, for a reason that the pods' events will show;
// an empty reason lifts it.
func (s *Store) Fence(reason string) error {
	if reason == "" {
		if err := os.Remove(s.path(fenceFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(s.path(fenceFile), []byte(reason), 0o644)
}
