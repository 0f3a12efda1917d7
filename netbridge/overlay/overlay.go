package overlay

import (
	"context"
	"net"
	"net/netip"
)

// Peer is another node of the fabric.
type Peer struct {
	// Name is for messages.
	Name string
	// Host is its address in the overlay.
	Host netip.Addr
	// Endpoint is its address in the underlay.
	Endpoint netip.Addr
	// CIDRs are behind it.
	CIDRs []netip.Prefix
	// MAC is its device's, where the backend's devices have one.
	MAC net.HardwareAddr
	// Key is its public key in base64, where the backend encrypts.
	Key string
	// MTU is that of its overlay device.
	MTU int
}

// Goal is the state to bring the kernel to.
type Goal struct {
	Peers []Peer
	// Backstop are ranges that must not leave by another route, such as the default
	// one, unencapsulated, when no peer has them: they are unreachable.
	Backstop []netip.Prefix
	// Prune says that what is ours and not wanted is to go. Without it the goal is
	// only added to what is there.
	Prune bool
}

// Changes counts what was done.
type Changes struct {
	// Device says that the device was made or made anew.
	Device bool
	Set    int
	Gone   int
	// Again asks for another Ensure, after the new peers have been let in: what one
	// of them is sent before may be answered in vain.
	Again bool
}

// Any says whether anything was done.
func (c Changes) Any() bool { return c.Device || c.Set+c.Gone > 0 }

// Backend carries packets between nodes.
type Backend interface {
	// Ensure brings the kernel to the goal. It does all it can: one peer that
	// cannot be set does not hold up the others, and the errors are joined.
	Ensure(Goal) (Changes, error)
	// Drift says what Ensure would do, in words, and does nothing.
	Drift(Goal) ([]string, error)
	// Watch calls changed when somebody has touched what Ensure made, until ctx
	// ends. It returns when it listens.
	Watch(ctx context.Context, changed func(what string)) error
	// MTU is what the pods behind it may send, in bytes.
	MTU() int
	// Device is the name of the network device.
	Device() string
}
