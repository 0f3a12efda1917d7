package ipam

import (
	"net/netip"
	"os"
	"strings"
	"time"
)

// Grace is how long an address must have been without an owner before it is
// collected: an allocation's network is set up before the servers list it.
const Grace = 2 * time.Minute

// Collector frees addresses whose pods are gone without a DEL.
type Collector struct {
	Store *Store
	// unowned says since when an address has been seen without an owner.
	unowned map[netip.Addr]time.Time
}

// stands says that the namespace is still there. A process's own would be named by
// a number that another may have by now.
func stands(netns string) bool {
	if netns == "" || strings.HasPrefix(netns, "/proc/") {
		return false
	}
	_, err := os.Stat(netns)
	return err == nil
}

// Collect takes the containers that are live, all of them: it must not be called
// with a list that is not known to be whole. One whose network namespace stands is
// live, too: Nomad forgets the allocations of a purged job before they have ended.
// It returns what was freed.
func (c *Collector) Collect(live map[string]bool) (freed []netip.Addr, err error) {
	err = c.Store.locked(func() error {
		entries, err := c.Store.entries()
		if err != nil {
			return err
		}
		now := c.Store.now()
		since := map[netip.Addr]time.Time{}
		for _, e := range entries {
			if live[e.Owner.Container] || stands(e.Owner.Netns) {
				continue
			}
			first, seen := c.unowned[e.Address]
			if !seen || e.Since.After(first) { // given anew in between
				first = now
			}
			if now.Sub(first) < Grace {
				since[e.Address] = first
				continue
			}
			if err := c.Store.release(e.Address); err != nil {
				return err
			}
			freed = append(freed, e.Address)
		}
		c.unowned = since
		return nil
	})
	return freed, err
}
