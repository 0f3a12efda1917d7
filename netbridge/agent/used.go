package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

// countInterval is the least time between two counts: each reads the store under the
// lock that pods wait for.
const countInterval = 250 * time.Millisecond

// watchStore has the addresses counted when one is given, until ctx ends: many pods
// that start at once may use the last tenth of a block between two audits.
func (a *Agent) watchStore(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(a.store.Used())
	}
	if err != nil {
		return fmt.Errorf("watch the address store: %w", err)
	}
	go func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-w.Events:
				if e.Has(fsnotify.Create) {
					wake(a.given, "an address was given")
					pause(ctx, countInterval)
				}
			case err := <-w.Errors:
				a.Log.Debug("watches the address store", "error", err)
				wake(a.given, "addresses may have been given")
			}
		}
	}()
	return nil
}

// scarce says that no more than a tenth of the blocks' addresses is left.
func scarce(used int, blocks []netip.Prefix) bool {
	size := ipam.Size(blocks)
	return size > 0 && size-used <= (size+9)/10
}

// count looks how many addresses are used, and asks for another block in time.
func (a *Agent) count() {
	entries, err := a.store.Entries()
	if err != nil {
		a.problem("store", err)
		return
	}
	a.problem("store", nil)
	a.metrics.addresses.Set(float64(len(entries)))
	if scarce(len(entries), a.state.Own.CIDRs) {
		wake(a.reclaim, "addresses are scarce")
	}
}
