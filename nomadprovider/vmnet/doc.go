// Package vmnet gives the address of a pod to its VM's guest: in the pod's network
// namespace [Hand] makes a bridge of the pod's device and the VM's tap, [Serve]
// answers the guest's DHCP requests, and [Via] finds the guest from within.
//
// What CNI has made stays as it was made: its device keeps its name, MAC, address
// and routes, although nothing listens there any more. Nomad has CNI check them
// when a client's agent starts again, and makes the namespace anew, under the
// running VM, when something is missing (client/allocrunner/networking_cni.go);
// and CNI takes a pod's masquerading back by the address that it finds on the
// device (plugins/main/bridge, cmdDel). So the namespace is kept from using them
// instead: the address is taken from its table of local addresses, and a rule in
// front of the main table knows the way to the guest and no other. The guest has a
// MAC of its own, which its job names. It outlives the namespace, which a reboot
// of the client ends, as what cloud-init has written for that MAC does.
//
// The namespace speaks to the guest from a link-local address on the bridge. The
// guest sends its answers where it sends all that is not on its link, to the
// gateway; nftables turns them round. That needs nothing of the guest, where a
// route by DHCP would depend on what it makes of that. The same table keeps the
// link-local address within the namespace, since each VM's has the same one, and
// has the guest speak as its pod alone.
//
// All state is the kernel's. What is there is adopted, by the next companion or
// after a restart of the VM, whose tap stays.
package vmnet
