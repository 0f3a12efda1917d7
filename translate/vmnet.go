package translate

import (
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// RowNetwork is the key, in the configuration of a row with the qemu driver, that
// says what network guests have. It is not the driver's.
const RowNetwork = "network"

// The networks of a guest, of a row and of [AnnotationVMNetwork].
const (
	// VMNetworkUser is qemu's own, behind the pod's address, from which the ports
	// that the container lists are forwarded.
	VMNetworkUser = "user"
	// VMNetworkTap gives the guest the pod's address.
	VMNetworkTap = "tap"
)

// VMTapCapabilities are what the companion of a VM with [VMNetworkTap] needs of
// the client's docker driver (nomadprovider/vmnet).
var VMTapCapabilities = []string{"net_admin", "net_bind_service", "net_raw"}

// VMTapDevice is the guest's card on the client, which the companion makes.
const VMTapDevice = "vmtap0"

const tunDevice = "/dev/net/tun"

// vmTap decides whether the guest has the pod's address: as the row says, unless
// the pod wants less.
func (b *builder) vmTap() bool {
	allowed := b.row.Config[RowNetwork] == VMNetworkTap
	asked := b.pod.Annotations[AnnotationVMNetwork]
	field := "metadata.annotations[" + AnnotationVMNetwork + "]"
	switch asked {
	case "", VMNetworkUser:
	case VMNetworkTap:
		if !allowed {
			b.refuse(field, "a guest with the pod's address is not allowed: set config.network: tap in the row of virtualNodes[].runtimes")
		} else if !b.ownAddress() {
			b.refuse(field, "the pod has no address of its own")
		}
	default:
		b.refuse(field, "%q is neither user nor tap", asked)
	}
	return allowed && asked != VMNetworkUser && b.ownAddress()
}

// vmNetwork gives the guest its card. A tap has all ports; with qemu's user network
// within the allocation's network namespace the container's ports are forwarded
// from the pod's address.
func (b *builder) vmNetwork(c *container) []string {
	netdev := "tap,id=net0,ifname=" + VMTapDevice + ",script=no,downscript=no"
	if !b.machine.tap {
		netdev = "user,id=net0" + b.vmForwards(c)
	}
	return []string{"-netdev", netdev, "-device", "virtio-net-pci,netdev=net0,mac=" + b.vmMAC().String()}
}

func (b *builder) vmForwards(c *container) (forwards string) {
	for _, p := range c.Ports {
		protocol := strings.ToLower(string(p.Protocol))
		switch {
		case protocol == "":
			protocol = "tcp"
		case p.Protocol == corev1.ProtocolSCTP:
			b.refuse(fmt.Sprintf("%s.ports[%d].protocol", c.path, p.ContainerPort), "a VM's ports are TCP or UDP")
			continue
		}
		if !b.ownAddress() && p.HostPort == 0 {
			b.note(fmt.Sprintf("%s.ports[%d]", c.path, p.ContainerPort), "is not reachable: the VM has the client's network and the port no hostPort")
			continue
		}
		forwards += fmt.Sprintf(",hostfwd=%s::%d-:%d", protocol, p.ContainerPort, p.ContainerPort)
	}
	return forwards
}

// vmMAC is the guest's own, locally administered. In qemu's user network it is
// alone; on a client's bridge it must differ from all others'.
func (b *builder) vmMAC() net.HardwareAddr {
	sum := sha256.Sum256([]byte(b.pod.UID))
	if b.machine.tap {
		return append(net.HardwareAddr{0x02}, sum[:5]...)
	}
	return append(net.HardwareAddr{0x52, 0x54, 0x00}, sum[:3]...) // as qemu's are
}

// tapCompanion lets the companion make the guest's card and give it the address.
func (b *builder) tapCompanion(t *api.Task) {
	t.Config["cap_add"] = slices.Concat(t.Config["cap_add"].([]string), VMTapCapabilities)
	t.Config["devices"] = []map[string]any{{"host_path": tunDevice, "container_path": tunDevice, "cgroup_permissions": "rw"}}
}
