package agent

import (
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/routes"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/vxlan"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/wireguard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

// keyFile has the node's WireGuard private key; with it goes who the node is to
// its peers.
const keyFile = "wireguard.key"

// newBackend is that of the settings.
func (a *Agent) newBackend() (overlay.Backend, error) {
	s, own := a.state.Settings, a.state.Own
	if s.Backend != fabric.BackendWireGuard {
		return vxlan.New(vxlan.Config{
			Name: a.Config.Device, VNI: s.VNI, Port: s.Port, Endpoint: a.endpoint, Host: own.Host, MAC: a.id.MAC(),
		}, a.Log.Named("vxlan"))
	}
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	return wireguard.New(wireguard.Config{Name: a.Config.Device, Key: key, Port: s.Port, Endpoint: a.endpoint, Host: own.Host}, a.Log.Named("wireguard"))
}

func (a *Agent) key() (wgtypes.Key, error) { return wireguard.LoadKey(a.keyPath) }

// keyPath is where the key of the node is. The one of the node that this machine was
// the last time, before Nomad or the API server called it otherwise, stays that
// node's: while its record is there, nobody follows another with the same key.
func keyPath(stateDir string, id, last fabric.ID) string {
	_, name, _ := strings.Cut(string(id), "/")
	own := filepath.Join(stateDir, "wireguard-"+name+".key")
	if _, err := os.Stat(own); err == nil || last != "" && last != id {
		return own
	}
	return filepath.Join(stateDir, keyFile)
}

// describe adds to a claim what follows from the backend of its settings.
func (a *Agent) describe(q *registry.Request) error {
	mtu, err := routes.UnderlayMTU(a.endpoint)
	if err != nil {
		return err
	}
	if q.Settings.Backend != fabric.BackendWireGuard {
		q.MTU = mtu - vxlan.Overhead
		return nil
	}
	key, err := a.key()
	if err != nil {
		return err
	}
	q.MTU, q.WG = mtu-wireguard.Overhead, key.PublicKey().String()
	return nil
}
