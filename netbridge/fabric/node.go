package fabric

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Kinds of nodes.
const (
	KindNomad = "nomad"
	KindK8s   = "k8s"
)

// ID is "nomad/" and the Nomad client's node ID, or "k8s/" and the Node's UID.
type ID string

// Kind is the part before the slash.
func (id ID) Kind() string {
	kind, _, _ := strings.Cut(string(id), "/")
	return kind
}

// Validate says whether the ID can be a key.
func (id ID) Validate() error {
	kind, name, _ := strings.Cut(string(id), "/")
	if kind != KindNomad && kind != KindK8s || name == "" || strings.ContainsAny(name, "/ ") {
		return fmt.Errorf("node ID %q is not nomad/ID or k8s/UID", id)
	}
	return nil
}

// MAC is the hardware address of the node's overlay device. It follows from the
// ID, so that no record can claim another's and a device made anew has the same.
func (id ID) MAC() net.HardwareAddr {
	sum := sha256.Sum256([]byte(id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// Slot is where a node begins to look for a free one of n.
func (id ID) Slot(n int) int {
	sum := sha256.Sum256([]byte("slot " + id))
	return int((uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])) % uint32(n))
}

// Version of the record.
const Version = 1

// Node is the record that a node publishes.
type Node struct {
	Version int `json:"v"`
	// CIDRs are the ranges of its pods.
	CIDRs []netip.Prefix `json:"cidrs"`
	// Host is its address in the overlay.
	Host netip.Addr `json:"host"`
	// Endpoint is its address in the underlay.
	Endpoint netip.Addr `json:"ep"`
	// MTU is its overlay device's, in bytes.
	MTU int `json:"mtu"`
	// WG is its WireGuard public key, in base64, where the backend is WireGuard.
	WG string `json:"wg,omitempty"`
}

// Equal compares all fields.
func (n Node) Equal(o Node) bool {
	return n.Version == o.Version && slices.Equal(n.CIDRs, o.CIDRs) && n.Host == o.Host && n.Endpoint == o.Endpoint && n.MTU == o.MTU && n.WG == o.WG
}

// minMTU is the least that every IPv4 path carries in practice (RFC 8200 asks for
// as much of IPv6); below it DNS answers and TLS hand-shakes break.
const minMTU = 1280

// Allowed says why a record must not be followed, by itself; nil if it may.
func (s Settings) Allowed(id ID, n Node) error {
	if err := id.Validate(); err != nil {
		return err
	}
	if n.Version != Version {
		return fmt.Errorf("version %d of the record is not known", n.Version)
	}
	if !n.Host.IsValid() || !s.HostCIDR.Contains(n.Host) {
		return fmt.Errorf("host address %s is outside hostCIDR %s", n.Host, s.HostCIDR)
	}
	if !n.Endpoint.Is4() || n.Endpoint.IsLoopback() || n.Endpoint.IsUnspecified() || n.Endpoint.IsMulticast() {
		return fmt.Errorf("endpoint %s is no IPv4 unicast address", n.Endpoint)
	}
	for _, o := range s.Overlay() {
		if o.Contains(n.Endpoint) {
			return fmt.Errorf("endpoint %s lies in the overlay itself (%s)", n.Endpoint, o)
		}
	}
	if n.MTU < minMTU || n.MTU > 65535 {
		return fmt.Errorf("MTU %d is not between %d and 65535", n.MTU, minMTU)
	}
	for _, c := range n.CIDRs {
		if err := s.mayAnnounce(id, c); err != nil {
			return err
		}
	}
	if s.Backend == BackendWireGuard {
		return validKey(n.WG)
	}
	return nil
}

// validKey takes what wg(8) writes: 32 bytes in base64. The one that is all zeros
// stands for none in WireGuard's interfaces.
func validKey(text string) error {
	if text == "" {
		return errors.New("there is no WireGuard key (wg) in it")
	}
	key, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(key) != 32 || !slices.ContainsFunc(key, func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("wg %q is no WireGuard key", text)
	}
	return nil
}

func (s Settings) mayAnnounce(id ID, c netip.Prefix) error {
	if !c.IsValid() || c != c.Masked() {
		return fmt.Errorf("range %v is not one", c)
	}
	if id.Kind() == KindNomad {
		if c.Bits() != s.BlockBits || !s.BurstCIDR.Contains(c.Addr()) {
			return fmt.Errorf("range %s is no block of burstCIDR %s", c, s.BurstCIDR)
		}
		return nil
	}
	within := func(o netip.Prefix) bool { return o.Bits() <= c.Bits() && o.Contains(c.Addr()) }
	if !slices.ContainsFunc(s.ClusterCIDRs, within) {
		return fmt.Errorf("range %s is in none of clusterCIDRs %v", c, s.ClusterCIDRs)
	}
	return nil
}

// Accept sorts out the records that may be followed and says why the others may
// not. Where two want the same addresses, the one that is followed already stays:
// a stolen range never takes the traffic away from the pods that have it. A record
// with another key than the one that is followed is refused, and the old one stays
// accepted: whoever may write records is not thereby given what others send.
func (s Settings) Accept(records, followed map[ID]Node) (accepted map[ID]Node, refused map[ID]error) {
	accepted = map[ID]Node{}
	records, refused = s.pin(records, followed)
	ids := slices.SortedFunc(maps.Keys(records), func(a, b ID) int {
		return cmp.Or(cmp.Compare(seniority(followed, records, a), seniority(followed, records, b)), cmp.Compare(a, b))
	})
	var taken []claim
	for _, id := range ids {
		n := records[id]
		err := s.Allowed(id, n)
		if err == nil {
			err = collides(taken, n)
		}
		if err != nil {
			refused[id] = err
			continue
		}
		accepted[id] = n
		taken = append(taken, claim{id, n})
	}
	return accepted, refused
}

// pin puts what is followed in the place of records that have another key.
func (s Settings) pin(records, followed map[ID]Node) (map[ID]Node, map[ID]error) {
	out, refused := maps.Clone(records), map[ID]error{}
	if s.Backend != BackendWireGuard {
		return out, refused
	}
	for id, n := range records {
		if f, ok := followed[id]; ok && f.WG != "" && n.WG != f.WG {
			refused[id] = fmt.Errorf("its WireGuard key has changed from %s to %q: if the node was set up anew, delete nodes/%s of the fabric in Consul, and it publishes its key again",
				f.WG, n.WG, id)
			out[id] = f
		}
	}
	return out, refused
}

// seniority: 0 for what is followed as it is, 1 for what is followed with another
// record, 2 for what is new.
func seniority(followed, records map[ID]Node, id ID) int {
	f, ok := followed[id]
	switch {
	case ok && f.Equal(records[id]):
		return 0
	case ok:
		return 1
	}
	return 2
}

type claim struct {
	id ID
	n  Node
}

// collides lets two nodes have one endpoint: a machine that was set up anew comes
// back with a new ID while its old record is still there, and what an endpoint
// gets for a MAC that is not its own it drops.
func collides(taken []claim, n Node) error {
	for _, t := range taken {
		if t.n.Host == n.Host {
			return fmt.Errorf("host address %s is %s's", n.Host, t.id)
		}
		if n.WG != "" && t.n.WG == n.WG {
			return fmt.Errorf("its WireGuard key is %s's", t.id)
		}
		for _, c := range n.CIDRs {
			if i := slices.IndexFunc(t.n.CIDRs, c.Overlaps); i >= 0 {
				return fmt.Errorf("range %s overlaps %s of %s", c, t.n.CIDRs[i], t.id)
			}
		}
	}
	return nil
}

// ErrOwned says that a range which this node holds is another's in the record.
var ErrOwned = errors.New("is owned by another node")
