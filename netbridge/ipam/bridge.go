package ipam

import (
	"encoding/binary"
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identify gives a bridge that the bridge plugin has just made, before there was an
// agent, the address that the agent would give it. It cannot wait for the agent: the
// plugin's result has the address, and Nomad, whose CHECK finds another one when it
// starts again, makes the network anew under the running pod (client/allocrunner,
// network_hook.go). No bridge, or no address to give, is no error.
func identify(bridge, mac string) error {
	want, err := net.ParseMAC(mac)
	if mac == "" || bridge == "" {
		return nil
	}
	if err != nil || len(want) != 6 {
		return fmt.Errorf("network configuration: ipam.bridgeMAC: %q is no hardware address", mac)
	}
	link, err := net.InterfaceByName(bridge)
	if err != nil || link.HardwareAddr.String() == want.String() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set the address of %s: %w", bridge, err)
	}
	defer unix.Close(fd)
	// struct ifreq: a name of 16 bytes, then a struct sockaddr with the kind of address
	// (linux/if.h). A library would make a program larger that is started for every pod.
	var req [40]byte
	copy(req[:unix.IFNAMSIZ-1], bridge)
	binary.NativeEndian.PutUint16(req[unix.IFNAMSIZ:], unix.ARPHRD_ETHER)
	copy(req[unix.IFNAMSIZ+2:], want)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("set the address of %s to %s: %w", bridge, mac, errno)
	}
	return nil
}
