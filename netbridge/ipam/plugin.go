package ipam

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// Plugin is the name under which the bridge plugin calls this one.
const Plugin = "netbridge-ipam"

// Config is the ipam part of the network's configuration.
type Config struct {
	Type string `json:"type"`
	// DataDir is the store.
	DataDir string `json:"dataDir"`
	// Blocks are this node's.
	Blocks []netip.Prefix `json:"blocks"`
	// BridgeMAC is that of the network's bridge; empty: it is left as it is.
	BridgeMAC string `json:"bridgeMAC,omitempty"`
}

type network struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Bridge is a part of the bridge plugin's, which hands on all of its own.
	Bridge string `json:"bridge"`
	IPAM   Config `json:"ipam"`
}

// Main is the plugin; it ends the process.
func Main(about string) {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: check, Del: del}, version.All, about)
}

func open(args *skel.CmdArgs) (*Store, network, Owner, error) {
	var n network
	if err := json.Unmarshal(args.StdinData, &n); err != nil {
		return nil, n, Owner{}, fmt.Errorf("network configuration: %w", err)
	}
	if n.IPAM.DataDir == "" {
		return nil, n, Owner{}, fmt.Errorf("network configuration: ipam.dataDir is missing")
	}
	s, err := Open(n.IPAM.DataDir)
	return s, n, Owner{Container: args.ContainerID, Interface: args.IfName, Network: n.Name, Netns: args.Netns}, err
}

func add(args *skel.CmdArgs) error {
	s, n, owner, err := open(args)
	if err != nil {
		return err
	}
	if err := identify(n.Bridge, n.IPAM.BridgeMAC); err != nil {
		return err
	}
	addr, block, err := s.Add(owner, n.IPAM.Blocks)
	if err != nil {
		return err
	}
	gateway := net.IP(fabric.Gateway(block).AsSlice())
	return types.PrintResult(&current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		IPs: []*current.IPConfig{{
			Address: net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(block.Bits(), 32)},
			Gateway: gateway,
		}},
		Routes: []*types.Route{{Dst: net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, GW: gateway}},
	}, n.CNIVersion)
}

func check(args *skel.CmdArgs) error {
	s, _, owner, err := open(args)
	if err != nil {
		return err
	}
	_, found, err := s.Find(owner)
	if err == nil && !found {
		err = fmt.Errorf("container %s has no address", args.ContainerID)
	}
	return err
}

func del(args *skel.CmdArgs) error {
	s, _, owner, err := open(args)
	if err != nil {
		return err
	}
	return s.Release(owner)
}
