package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// Network is the name, as in network { mode = "cni/netbridge" }.
const Network = "netbridge"

// Config says what goes into the file.
type Config struct {
	// Bridge is the device's name.
	Bridge string
	// MAC is the bridge's, for where the plugin makes it.
	MAC net.HardwareAddr
	// MTU of the pods, in bytes.
	MTU int
	// Blocks are this node's.
	Blocks []netip.Prefix
	// DataDir is the address store.
	DataDir string
	// HostPorts puts every port of an allocation on the client's address, too. It
	// costs iptables rules a pod, under Nomad's one lock for all set-ups.
	HostPorts bool
}

type list struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type loopback struct {
	Type string `json:"type"`
}

type bridge struct {
	Type        string      `json:"type"`
	Bridge      string      `json:"bridge"`
	IPMasq      bool        `json:"ipMasq"`
	HairpinMode bool        `json:"hairpinMode"`
	MTU         int         `json:"mtu"`
	IPAM        ipam.Config `json:"ipam"`
}

type portmap struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	SNAT         bool            `json:"snat"`
}

// Render makes the file's content. The bridge's addresses are not the plugin's
// business (see package bridge).
func Render(c Config) ([]byte, error) {
	if len(c.Blocks) == 0 {
		return nil, errors.New("a network without a block would have no addresses")
	}
	plugins := []any{
		loopback{"loopback"},
		bridge{
			Type: "bridge", Bridge: c.Bridge, HairpinMode: true, MTU: c.MTU,
			IPAM: ipam.Config{Type: ipam.Plugin, DataDir: c.DataDir, Blocks: c.Blocks, BridgeMAC: c.MAC.String()},
		},
	}
	if c.HostPorts {
		plugins = append(plugins, portmap{"portmap", map[string]bool{"portMappings": true}, true})
	}
	return json.MarshalIndent(list{CNIVersion: "1.0.0", Name: Network, Plugins: plugins}, "", "  ")
}

// Write replaces the file as a whole if it differs and says whether it did.
func Write(file string, c Config) (bool, error) {
	data, err := Render(c)
	if err != nil {
		return false, err
	}
	old, err := os.ReadFile(file)
	if err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("write the CNI network: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return false, fmt.Errorf("write the CNI network: %w", err)
	}
	if err := replace(file, data); err != nil {
		return false, fmt.Errorf("write the CNI network: %w", err)
	}
	return true, nil
}

// replace has the data on the disk before the file has its name. With one that a
// power cut left empty Nomad's client does not start (client/fingerprint/cni.go), nor
// does an agent that is a job of Nomad's, which would write it again.
func replace(file string, data []byte) error {
	// Nomad reads *.conflist, *.conf and *.json, not this name.
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
