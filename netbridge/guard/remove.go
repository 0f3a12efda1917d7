package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/hashicorp/go-hclog"
	"sigs.k8s.io/knftables"
)

// Remove takes the table away, and what was added to iptables' FORWARD chain. It
// says what it removed.
func Remove(ctx context.Context) ([]string, error) {
	var done []string
	var errs []error
	now, err := list(ctx)
	if err == nil && now != "" {
		var g *Guard
		if g, err = New("", hclog.NewNullLogger()); err == nil {
			tx := g.nft.NewTransaction()
			tx.Delete(&knftables.Table{})
			err = g.nft.Run(ctx, tx)
		}
		if err == nil {
			done = append(done, "nftables table ip "+Table)
		}
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("remove nftables table %s: %w", Table, err))
	}
	n, err := unforward()
	if n > 0 {
		done = append(done, fmt.Sprintf("%d rules of iptables' FORWARD chain", n))
	}
	return done, errors.Join(append(errs, err)...)
}

// unforward removes what carries our comment.
func unforward() (int, error) {
	ipt, err := iptables.New(iptables.Timeout(5))
	if err != nil {
		return 0, nil // without the program there are no rules by it
	}
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return 0, fmt.Errorf("list iptables' FORWARD chain: %w", err)
	}
	n := 0
	for _, r := range rules {
		if !strings.Contains(r, "--comment netbridge ") {
			continue
		}
		if err := ipt.Delete("filter", "FORWARD", strings.Fields(r)[2:]...); err != nil {
			return n, fmt.Errorf("remove a rule of iptables' FORWARD chain: %w", err)
		}
		n++
	}
	return n, nil
}
