package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

const (
	// peerSet is the set of those that may send into the overlay.
	peerSet = "peers"
	// elementsPerMessage keeps an attribute below its 64 KiB (struct nlattr,
	// linux/netlink.h).
	elementsPerMessage = 500
)

// peerset talks to the kernel without a process: peers change far more often than
// rules do, and every new one's packets are dropped until it is in the set.
func peerset() *nftables.Set {
	return &nftables.Set{Name: peerSet, KeyType: nftables.TypeIPAddr, Table: &nftables.Table{Name: Table, Family: nftables.TableFamilyIPv4}}
}

// admitted lists who may send; nobody if there is no set.
func admitted() (map[netip.Addr]bool, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	elements, err := c.GetSetElements(peerset())
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list set %s of table %s: %w", peerSet, Table, err)
	}
	out := map[netip.Addr]bool{}
	for _, e := range elements {
		if a, ok := netip.AddrFromSlice(e.Key); ok {
			out[a] = true
		}
	}
	return out, nil
}

// admit brings the set from have to want in one transaction and says how many
// elements it changed.
func admit(have, want map[netip.Addr]bool) (int, error) {
	add, remove := missing(want, have), missing(have, want)
	if len(add)+len(remove) == 0 {
		return 0, nil
	}
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("connect to nftables: %w", err)
	}
	for part := range slices.Chunk(add, elementsPerMessage) {
		err = errors.Join(err, c.SetAddElements(peerset(), part))
	}
	for part := range slices.Chunk(remove, elementsPerMessage) {
		err = errors.Join(err, c.SetDeleteElements(peerset(), part))
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return 0, fmt.Errorf("change set %s of table %s: %w", peerSet, Table, err)
	}
	return len(add) + len(remove), nil
}

// missing are the elements of a that b has not.
func missing(a, b map[netip.Addr]bool) (out []nftables.SetElement) {
	for e := range a {
		if !b[e] {
			out = append(out, nftables.SetElement{Key: e.AsSlice()})
		}
	}
	return out
}
