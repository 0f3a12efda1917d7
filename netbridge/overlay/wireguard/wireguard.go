package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
)

// Overhead is what WireGuard over IPv4 adds to a packet, in bytes: outer IPv4 20,
// UDP 8, the header of a data message 16, its authentication tag 16.
const Overhead = 60

// Config is one node's device.
type Config struct {
	// Name of the device.
	Name string
	// Key is this node's private one.
	Key wgtypes.Key
	// Port is the UDP port, here and at the peers.
	Port int
	// Endpoint is this machine's address in the underlay; the device that has it
	// gives the MTU.
	Endpoint netip.Addr
	// Host is this node's address in the overlay.
	Host netip.Addr
}

// Backend is WireGuard. Its methods must not be called at once, except Watch and
// Drift.
type Backend struct {
	cfg Config
	mtu int
	log hclog.Logger
}

var _ overlay.Backend = (*Backend)(nil)

// New finds the device that has the endpoint. It changes nothing.
func New(cfg Config, log hclog.Logger) (*Backend, error) {
	mtu, err := routes.UnderlayMTU(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	return &Backend{cfg: cfg, mtu: mtu - Overhead, log: log}, nil
}

// MTU is the device's.
func (b *Backend) MTU() int { return b.mtu }

// Device is its name.
func (b *Backend) Device() string { return b.cfg.Name }

// Watch listens for the device's end, coming or change, and for removed routes.
// Nothing tells of a change of peers.
func (b *Backend) Watch(ctx context.Context, changed func(string)) error {
	differs := func(a *netlink.LinkAttrs) bool { return a.MTU != b.mtu }
	return routes.Watch(ctx, b.log, changed, routes.Device(b.cfg.Name, differs), routes.Removed)
}

// Ensure brings device, peers and routes to the goal. The device counts as made
// where it had another key: nobody has a session with it.
func (b *Backend) Ensure(g overlay.Goal) (overlay.Changes, error) {
	var c overlay.Changes
	if err := b.make(); err != nil {
		return c, err
	}
	// A process that has just begun answers when it has done with the device.
	client, dev, err := b.open()
	if err != nil {
		return c, err
	}
	defer client.Close()
	link, err := netlink.LinkByName(b.cfg.Name)
	if err != nil {
		return c, fmt.Errorf("find device %s: %w", b.cfg.Name, err)
	}
	if err := routes.Settle(link, b.mtu, b.cfg.Host); err != nil {
		return c, err
	}
	if c.Device, err = b.identify(client, dev); err != nil {
		return c, err
	}
	have, err := routes.Dump(link)
	if err != nil {
		return c, err
	}
	peers, names, err := want(g, b.cfg.Port)
	errs := []error{err}
	before, after := plan(peers, found(dev), names, g.Prune)
	set, gone := routes.Plan(routes.Want(g, b.mtu), have, g.Prune)
	// What a route needs is set before it and removed after it.
	n, err := b.configure(client, before)
	c.Set += n
	c.Again = n > 0
	errs = append(errs, err)
	for _, o := range append(set, gone...) {
		switch err := have.Apply(link, o); {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", o, err))
		case o.Del:
			c.Gone++
		default:
			c.Set++
		}
	}
	n, err = b.configure(client, after)
	c.Gone += n
	return c, errors.Join(append(errs, err)...)
}

// Drift says what Ensure would do.
func (b *Backend) Drift(g overlay.Goal) ([]string, error) {
	link, err := netlink.LinkByName(b.cfg.Name)
	if routes.Missing(err) {
		return []string{"make device " + b.cfg.Name}, nil
	}
	if err != nil {
		return nil, err
	}
	client, dev, err := b.open()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var out []string
	if b.differs(dev) {
		out = append(out, "set key and port of device "+b.cfg.Name)
	}
	have, err := routes.Dump(link)
	if err != nil {
		return nil, err
	}
	peers, names, err := want(g, b.cfg.Port)
	before, after := plan(peers, found(dev), names, g.Prune)
	for _, c := range append(before, after...) {
		if c.what != "" {
			out = append(out, c.what)
		}
	}
	set, gone := routes.Plan(routes.Want(g, b.mtu), have, g.Prune)
	for _, o := range append(set, gone...) {
		out = append(out, o.String())
	}
	return out, err
}

// make adopts the device that is there, and makes the kernel's where there is
// none.
func (b *Backend) make() error {
	link, err := netlink.LinkByName(b.cfg.Name)
	switch {
	case routes.Missing(err):
		return b.add()
	case err != nil:
		return fmt.Errorf("find device %s: %w", b.cfg.Name, err)
	}
	switch link.(type) {
	case *netlink.Wireguard, *netlink.Tuntap:
		return nil
	}
	return fmt.Errorf("device %s is a %s of somebody else's: remove or rename it", b.cfg.Name, link.Type())
}

func (b *Backend) add() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = b.cfg.Name, b.mtu
	err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no WireGuard, and no process carries %s: load the module wireguard, or run netbridge wireguard --device %s beside the agent",
			b.cfg.Name, b.cfg.Name)
	}
	if err != nil {
		return fmt.Errorf("make WireGuard device %s: %w", b.cfg.Name, err)
	}
	return nil
}

// open reads the device. A client is made for each look, since one that was made
// before the kernel's module was loaded never sees it.
func (b *Backend) open() (*wgctrl.Client, *wgtypes.Device, error) {
	client, err := wgctrl.New()
	if err != nil {
		return nil, nil, fmt.Errorf("connect to WireGuard: %w", err)
	}
	dev, err := client.Device(b.cfg.Name)
	if err == nil {
		return client, dev, nil
	}
	_ = client.Close()
	return nil, nil, fmt.Errorf("device %s is there, but nothing of WireGuard's answers for it; is netbridge wireguard --device %s running in this network? %w",
		b.cfg.Name, b.cfg.Name, err)
}

func (b *Backend) differs(dev *wgtypes.Device) bool {
	return dev.PrivateKey != b.cfg.Key || dev.ListenPort != b.cfg.Port
}

// identify sets key and port, where they differ, and says whether the key did.
func (b *Backend) identify(client *wgctrl.Client, dev *wgtypes.Device) (bool, error) {
	if !b.differs(dev) {
		return false, nil
	}
	var cfg wgtypes.Config
	fresh := dev.PrivateKey != b.cfg.Key
	if fresh {
		cfg.PrivateKey = &b.cfg.Key
	}
	if dev.ListenPort != b.cfg.Port {
		cfg.ListenPort = &b.cfg.Port
	}
	if err := client.ConfigureDevice(b.cfg.Name, cfg); err != nil {
		return false, fmt.Errorf("set key and port %d of WireGuard device %s: %w", b.cfg.Port, b.cfg.Name, err)
	}
	return fresh, nil
}

// configure makes changes of peers and says how many are worth telling.
func (b *Backend) configure(client *wgctrl.Client, changes []change) (int, error) {
	if len(changes) == 0 {
		return 0, nil
	}
	var cfg wgtypes.Config
	n := 0
	for _, c := range changes {
		cfg.Peers = append(cfg.Peers, c.cfg)
		if c.what != "" {
			n++
		}
	}
	if err := client.ConfigureDevice(b.cfg.Name, cfg); err != nil {
		return 0, fmt.Errorf("set peers of WireGuard device %s: %w", b.cfg.Name, err)
	}
	return n, nil
}
