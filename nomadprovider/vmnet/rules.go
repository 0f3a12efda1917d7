package vmnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "nomad-kubelet-vm"

// match is what a rule asks of a frame; all of a rule's must hold.
type match []expr.Any

// Offsets in the headers, in bytes: of Ethernet, IPv4, ARP (RFC 826, with Ethernet
// and IPv4 addresses) and UDP.
const (
	etherDestination, etherSource = 0, 6
	ipProtocol, ipSource, ipDest  = 9, 12, 16
	arpSender, arpTarget          = 14, 24
	udpDest                       = 2
)

const (
	dhcpServer, dhcpClient = 67, 68
	// packetHost is a frame for this machine (linux/if_packet.h, PACKET_HOST).
	packetHost = 0
)

func compare(op expr.CmpOp, value []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: value}
}

func device(key expr.MetaKey, op expr.CmpOp, name string) match {
	value := make([]byte, unix.IFNAMSIZ)
	copy(value, name)
	return match{&expr.Meta{Key: key, Register: 1}, compare(op, value)}
}

func from(name string) match    { return device(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notFrom(name string) match { return device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func notTo(name string) match   { return device(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func header(base expr.PayloadBase, offset uint32, op expr.CmpOp, value []byte) match {
	return match{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(value))}, compare(op, value)}
}

func ether(offset uint32, op expr.CmpOp, mac net.HardwareAddr) match {
	return header(expr.PayloadBaseLLHeader, offset, op, mac)
}

func protocol(number uint16) match {
	return match{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, number))}
}

// ip and arp have an address in the network header.
func ip(offset uint32, op expr.CmpOp, a netip.Addr) match {
	return append(protocol(unix.ETH_P_IP), header(expr.PayloadBaseNetworkHeader, offset, op, a.AsSlice())...)
}

func arp(offset uint32, op expr.CmpOp, a netip.Addr) match {
	return append(protocol(unix.ETH_P_ARP), header(expr.PayloadBaseNetworkHeader, offset, op, a.AsSlice())...)
}

func udpTo(port uint16) match {
	return slices.Concat(protocol(unix.ETH_P_IP),
		header(expr.PayloadBaseNetworkHeader, ipProtocol, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
		header(expr.PayloadBaseTransportHeader, udpDest, expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, port)))
}

func drop() match   { return match{&expr.Verdict{Kind: expr.VerdictDrop}} }
func accept() match { return match{&expr.Verdict{Kind: expr.VerdictAccept}} }

// toSelf has a frame be the namespace's, whoever it was for.
func toSelf(mac net.HardwareAddr) match {
	return match{
		&expr.Immediate{Register: 1, Data: mac},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: etherDestination, Len: uint32(len(mac))},
		&expr.Immediate{Register: 1, Data: []byte{packetHost}},
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, SourceRegister: true, Register: 1},
	}
}

// writeRules replaces the table as a whole.
func writeRules(up string, address netip.Addr, guest, bridge net.HardwareAddr) error {
	const eq, ne = expr.CmpOpEq, expr.CmpOpNeq
	none := netip.IPv4Unspecified() // of a guest that asks for its address
	all := slices.Concat[match]
	chains := []struct {
		name     string
		hook     *nftables.ChainHook
		priority *nftables.ChainPriority
		policy   nftables.ChainPolicy
		rules    []match
	}{
		// Before the bridge looks where a frame goes.
		{"prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept, []match{
			// The guest's own, thrown back.
			all(from(up), ether(etherSource, eq, guest), drop()),
			// The guest is its pod, and nobody else.
			all(from(tapName), ether(etherSource, ne, guest), drop()),
			all(from(tapName), arp(arpSender, ne, address), arp(arpSender, ne, none), drop()),
			all(from(tapName), ip(ipSource, ne, address), ip(ipSource, ne, none), drop()),
			all(from(tapName), ip(ipDest, eq, self), toSelf(bridge)),
		}},
		{"input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept, []match{all(notFrom(tapName), drop())}},
		{"forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop, []match{
			all(arp(arpTarget, eq, self), drop()),
			all(arp(arpSender, eq, self), drop()),
			all(ip(ipDest, eq, self), drop()),
			all(ip(ipSource, eq, self), drop()),
			// Its address comes from here alone.
			all(from(tapName), udpTo(dhcpServer), drop()),
			all(from(up), udpTo(dhcpClient), drop()),
			all(protocol(unix.ETH_P_ARP), accept()),
			all(protocol(unix.ETH_P_IP), accept()),
		}},
		{"output", nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept, []match{all(notTo(tapName), drop())}},
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName}
	// The first has the second find something; all of it is one transaction.
	conn.AddTable(t)
	conn.DelTable(t)
	conn.AddTable(t)
	for _, c := range chains {
		chain := conn.AddChain(&nftables.Chain{Table: t, Name: c.name, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: c.priority, Policy: &c.policy})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r})
		}
	}
	return conn.Flush()
}
