package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	nomadapi "github.com/hashicorp/nomad/api"
	"golang.org/x/sys/unix"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/bridge"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/guard"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
)

// Remove takes a machine out of the pod network: what an agent leaves when it ends,
// but for its state directory and its claims, with which it would come back as who
// it was. It refuses while an agent runs or pods are on the bridge. It says what it
// removed, also beside an error. nomad may be nil.
func Remove(ctx context.Context, c *Config, nomad *nomadapi.Client) ([]string, error) {
	if err := idle(c.StateDir); err != nil {
		return nil, err
	}
	var done []string
	var metaErr error
	if c.Node.Kind == fabric.KindNomad {
		// First the network, so that no pod comes any more.
		var unset bool
		if unset, metaErr = unready(ctx, c, nomad); unset {
			done = append(done, "meta."+MetaKey+" of Nomad's client")
		}
		file := filepath.Join(c.CNI.ConfigDir, cniconf.Network+".conflist")
		switch err := os.Remove(file); {
		case err == nil:
			done = append(done, "CNI network "+file)
		case !errors.Is(err, os.ErrNotExist):
			return done, errors.Join(metaErr, fmt.Errorf("remove the CNI network: %w", err))
		}
		gone, err := bridge.Remove(c.CNI.Bridge)
		if err != nil {
			return done, errors.Join(metaErr, err)
		}
		if gone {
			done = append(done, "bridge "+c.CNI.Bridge)
		}
	}
	carried, err := overlay.Remove(c.Device)
	rules, guardErr := guard.Remove(ctx)
	return append(append(done, carried...), rules...), errors.Join(metaErr, err, guardErr)
}

// unready tells Nomad's scheduler that the client has the network no more. The client
// keeps both that it was ready and, until it is started again, that it knew it: pods
// would be placed here, and fail. It says whether that was so.
func unready(ctx context.Context, c *Config, nomad *nomadapi.Client) (bool, error) {
	name := c.Node.ID
	if name == "" {
		_, name, _ = strings.Cut(string(peers.LastID(filepath.Join(c.StateDir, peersFile))), "/")
	}
	if nomad == nil || name == "" {
		return false, nil // nobody has marked it
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	node, _, err := nomad.Nodes().Info(name, (&nomadapi.QueryOptions{}).WithContext(ctx))
	var unknown nomadapi.UnexpectedResponseError
	switch {
	case errors.As(err, &unknown) && unknown.StatusCode() == http.StatusNotFound:
		return false, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return false, nil // one that does not run does not know the network when it starts
	}
	var unset bool
	if err == nil {
		unset, err = mark(ctx, nomad, name, node.Meta[MetaKey], false)
	}
	if err != nil {
		return false, fmt.Errorf("pods may still be placed here: nomad node meta apply -node-id %s -unset %s: %w", name, MetaKey, err)
	}
	return unset, nil
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
