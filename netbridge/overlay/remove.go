package overlay

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol marks routes as ours (rtnetlink(7): above 4 is for user space to choose).
const Protocol = 76

// kinds are the devices that backends make.
var kinds = []string{"vxlan", "wireguard", "tuntap"}

// Remove takes the overlay's device and all our routes away, whatever backend made
// them. It says what it removed.
func Remove(device string) ([]string, error) {
	var done []string
	var errs []error
	link, err := netlink.LinkByName(device)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
	case err != nil:
		errs = append(errs, fmt.Errorf("find device %s: %w", device, err))
	case !slices.Contains(kinds, link.Type()):
		errs = append(errs, fmt.Errorf("device %s is a %s of somebody else's, it stays", device, link.Type()))
	default:
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", device, err))
			break
		}
		done = append(done, "device "+device)
	}
	// The backstops are by no device, so that they have not gone with it.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: Protocol},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		errs = append(errs, fmt.Errorf("list routes: %w", err))
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
			continue
		}
		done = append(done, "route "+r.Dst.String())
	}
	return done, errors.Join(errs...)
}
