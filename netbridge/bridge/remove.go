package bridge

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Remove takes the bridge away when no pod is on it. It says whether there was one.
func Remove(name string) (bool, error) {
	link, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find bridge %s: %w", name, err)
	case link.Type() != "bridge":
		return false, fmt.Errorf("device %s is a %s of somebody else's, it stays", name, link.Type())
	}
	links, err := netlink.LinkList()
	if err != nil {
		return false, fmt.Errorf("list devices: %w", err)
	}
	pods := 0
	for _, l := range links {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			pods++
		}
	}
	if pods > 0 {
		return false, fmt.Errorf("%d pods are on bridge %s: drain the client first (nomad node drain -enable -self)", pods, name)
	}
	if err := netlink.LinkDel(link); err != nil {
		return false, fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return true, nil
}
