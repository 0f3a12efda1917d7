package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/hashicorp/go-hclog"
	"sigs.k8s.io/knftables"
)

// Guard is the only writer of its table. Its methods must not be called at once,
// except Watch and Drift.
type Guard struct {
	nft knftables.Interface
	log hclog.Logger

	// file keeps written over a restart, so that a table which is as it should be
	// is adopted, not written anew.
	file string
	written
}

// written is the last write.
type written struct {
	// Applied is the table as the kernel lists it after the write: what is listed
	// otherwise is somebody else's doing.
	Applied string `json:"applied"`
	// From is what was written.
	From string `json:"from"`
}

// New needs nft 1.0.1 or later. The file is the guard's own.
func New(file string, log hclog.Logger) (*Guard, error) {
	nft, err := knftables.New(knftables.IPv4Family, Table)
	if err != nil {
		return nil, fmt.Errorf("nftables (is nft there, and the right to use it?): %w", err)
	}
	g := &Guard{nft: nft, log: log, file: file}
	if data, err := os.ReadFile(file); err == nil && json.Unmarshal(data, &g.written) != nil {
		g.written = written{} // cut off by a crash: writes the table anew
	}
	return g, nil
}

// Changes says what was done.
type Changes struct {
	// Written: the table was not as it should be.
	Written bool
	// Foreign: somebody else had changed it.
	Foreign bool
	// Forward is how many iptables rules were added.
	Forward int
	// Rebound is how many connections had a wrong source and begin anew.
	Rebound uint
}

// Ensure brings the rules to the goal. A table that is as it should be is not
// touched.
func (g *Guard) Ensure(ctx context.Context, r Rules) (Changes, error) {
	var c Changes
	now, err := list(ctx)
	if err != nil {
		return c, err
	}
	tx := r.transaction(g.nft)
	from := tx.String()
	if now == "" || now != g.Applied || from != g.From {
		c.Foreign = g.Applied != "" && now != g.Applied
		if err := g.write(ctx, tx, from); err != nil {
			return c, err
		}
		c.Written = true
	}
	c.Forward, err = forward(r)
	if err != nil {
		return c, err
	}
	if c.Written {
		c.Rebound, err = rebind(r)
	}
	return c, err
}

func (g *Guard) write(ctx context.Context, tx *knftables.Transaction, from string) error {
	if err := g.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	now, err := list(ctx)
	if err != nil {
		return err
	}
	g.written = written{now, from}
	data, err := json.Marshal(g.written)
	if err == nil {
		err = os.WriteFile(g.file, data, 0o600)
	}
	if err != nil {
		g.log.Warn("the next start will write the rules anew", "error", err)
	}
	return nil
}

// Drift says what Ensure would do.
func (g *Guard) Drift(ctx context.Context, applied string) ([]string, error) {
	now, err := list(ctx)
	if err != nil || now == applied {
		return nil, err
	}
	if now == "" {
		return []string{"write nftables table " + Table + ", which is gone"}, nil
	}
	return []string{"write nftables table " + Table + ", which somebody has changed"}, nil
}

// list returns the table without counters and handles; empty if there is none.
func list(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "nft", "--stateless", "list", "table", "ip", Table).Output()
	if err == nil {
		return string(out), nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if strings.Contains(string(exit.Stderr), "No such file") {
			return "", nil
		}
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return "", fmt.Errorf("list nftables table %s: %w", Table, err)
}

// forward adds to iptables' FORWARD chain where it drops, as Docker makes it: an
// accept in another table does not help against that. br_netfilter, which Docker
// loads, sends packets within the bridge through it, too.
func forward(r Rules) (int, error) {
	if _, err := exec.LookPath("iptables"); err != nil {
		return 0, nil
	}
	ipt, err := iptables.New(iptables.Timeout(5))
	if err != nil {
		return 0, fmt.Errorf("iptables: %w", err)
	}
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return 0, fmt.Errorf("list iptables' FORWARD chain: %w", err)
	}
	if !drops(rules) {
		return 0, nil
	}
	comment := []string{"-m", "comment", "--comment", "netbridge", "-j", "ACCEPT"}
	want := [][]string{{"-i", r.Device}, {"-o", r.Device}}
	if r.Bridge != "" {
		want = append(want, []string{"-i", r.Bridge}, []string{"-o", r.Bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"})
	}
	added := 0
	for _, w := range want {
		rule := append(w, comment...)
		there, err := ipt.Exists("filter", "FORWARD", rule...)
		if err == nil && !there {
			err = ipt.Insert("filter", "FORWARD", 1, rule...)
			added++
		}
		if err != nil {
			return added, fmt.Errorf("accept forwarded packets in iptables: %w", err)
		}
	}
	return added, nil
}

// drops says whether a packet may be dropped or refused on its way through.
func drops(rules []string) bool {
	for _, r := range rules {
		if strings.HasPrefix(r, "-P FORWARD") && !strings.HasSuffix(r, "ACCEPT") {
			return true
		}
		if strings.HasSuffix(r, "-j DROP") || strings.Contains(r, "-j REJECT") {
			return true
		}
	}
	return false
}
