package vxlan

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
)

// Overhead is what VXLAN over IPv4 adds to a packet, in bytes: outer IPv4 20,
// UDP 8, VXLAN 8, inner Ethernet 14.
const Overhead = 50

// Config is one node's device.
type Config struct {
	// Name of the device.
	Name string
	VNI  int
	// Port is the UDP port, here and at the peers.
	Port int
	// Endpoint is this machine's address in the underlay; the device that has it
	// gives the MTU.
	Endpoint netip.Addr
	// Host is this node's address in the overlay.
	Host netip.Addr
	MAC  net.HardwareAddr
}

// Backend is the kernel's VXLAN. Its methods must not be called at once, except
// Watch and Drift.
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

// Ensure brings device, neighbours, forwarding entries and routes to the goal.
func (b *Backend) Ensure(g overlay.Goal) (overlay.Changes, error) {
	var c overlay.Changes
	link, made, err := b.device()
	c.Device = made
	if err != nil {
		return c, err
	}
	have, err := dump(link)
	if err != nil {
		return c, err
	}
	var errs []error
	for _, o := range plan(want(g, b.mtu), have, g.Prune) {
		if err := apply(link, o, have); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", o, err))
			continue
		}
		if o.del {
			c.Gone++
		} else {
			c.Set++
		}
	}
	return c, errors.Join(errs...)
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
	var out []string
	if why := b.differs(link); why != "" {
		out = append(out, "make device anew: "+why)
	}
	have, err := dump(link)
	if err != nil {
		return nil, err
	}
	for _, o := range plan(want(g, b.mtu), have, g.Prune) {
		out = append(out, o.String())
	}
	return out, nil
}

// device adopts the device that is there, and makes it where there is none or
// one that cannot be made right: that loses packets.
func (b *Backend) device() (netlink.Link, bool, error) {
	link, err := netlink.LinkByName(b.cfg.Name)
	made := false
	switch {
	case err == nil:
		if why := b.differs(link); why != "" {
			b.log.Warn("the overlay device is made anew, packets are lost meanwhile", "device", b.cfg.Name, "reason", why)
			if link.Type() != "vxlan" {
				return nil, false, fmt.Errorf("device %s is a %s of somebody else's: remove or rename it", b.cfg.Name, link.Type())
			}
			if err := netlink.LinkDel(link); err != nil {
				return nil, false, fmt.Errorf("remove device %s: %w", b.cfg.Name, err)
			}
			link = nil
		}
	case routes.Missing(err):
	default:
		return nil, false, fmt.Errorf("find device %s: %w", b.cfg.Name, err)
	}
	if link == nil || err != nil {
		if link, err = b.add(); err != nil {
			return nil, false, err
		}
		made = true
	}
	return link, made, b.settle(link)
}

func (b *Backend) add() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = b.cfg.Name, b.mtu, b.cfg.MAC
	err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: b.cfg.VNI, Port: b.cfg.Port, SrcAddr: b.cfg.Endpoint.AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("make VXLAN device %s (VNI %d, port %d; is the module vxlan there?): %w", b.cfg.Name, b.cfg.VNI, b.cfg.Port, err)
	}
	return netlink.LinkByName(b.cfg.Name)
}

// differs says why the device cannot be kept.
func (b *Backend) differs(link netlink.Link) string {
	v, ok := link.(*netlink.Vxlan)
	switch {
	case !ok:
		return "it is a " + link.Type()
	case v.VxlanId != b.cfg.VNI:
		return fmt.Sprintf("its VNI is %d, not %d", v.VxlanId, b.cfg.VNI)
	case v.Port != b.cfg.Port:
		return fmt.Sprintf("its port is %d, not %d", v.Port, b.cfg.Port)
	case !v.SrcAddr.Equal(b.cfg.Endpoint.AsSlice()):
		return fmt.Sprintf("it sends from %s, not %s", v.SrcAddr, b.cfg.Endpoint)
	case v.Learning:
		return "it learns"
	case v.FlowBased:
		return "it is external"
	}
	return ""
}

// settle sets what can be set on a device that is in use.
func (b *Backend) settle(link netlink.Link) error {
	if a := link.Attrs(); !bytes.Equal(a.HardwareAddr, b.cfg.MAC) {
		if err := netlink.LinkSetHardwareAddr(link, b.cfg.MAC); err != nil {
			return fmt.Errorf("set the address of %s to %s: %w", a.Name, b.cfg.MAC, err)
		}
	}
	return routes.Settle(link, b.mtu, b.cfg.Host)
}
