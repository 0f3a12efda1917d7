package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/bridge"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/guard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
)

// Remove takes a machine out of the pod network: what an agent leaves when it ends,
// but for its state directory and its claims, with which it would come back as who
// it was. It refuses while an agent runs or pods are on the bridge. It says what it
// removed, also beside an error.
func Remove(ctx context.Context, c *Config) ([]string, error) {
	if err := idle(c.StateDir); err != nil {
		return nil, err
	}
	var done []string
	if c.Node.Kind == fabric.KindNomad {
		// First the network, so that no pod comes any more.
		file := filepath.Join(c.CNI.ConfigDir, cniconf.Network+".conflist")
		switch err := os.Remove(file); {
		case err == nil:
			done = append(done, "CNI network "+file)
		case !errors.Is(err, os.ErrNotExist):
			return done, fmt.Errorf("remove the CNI network: %w", err)
		}
		gone, err := bridge.Remove(c.CNI.Bridge)
		if err != nil {
			return done, err
		}
		if gone {
			done = append(done, "bridge "+c.CNI.Bridge)
		}
	}
	carried, err := overlay.Remove(c.Device)
	rules, guardErr := guard.Remove(ctx)
	return append(append(done, carried...), rules...), errors.Join(err, guardErr)
}

// idle says that an agent runs.
func idle(stateDir string) error {
	f, err := os.Open(filepath.Join(stateDir, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stateDir: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.New("the agent runs: stop it first")
	}
	return nil
}
