package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coreos/go-iptables/iptables"
	"github.com/hashicorp/go-hclog"
	"sigs.k8s.io/knftables"
)

// Guard is the only writer of its table. Ensure must not be called at once with
// itself; Watch and Drift may be called at any time.
type Guard struct {
	nft knftables.Interface
	log hclog.Logger

	// file keeps written over a restart, so that a table which is as it should be
	// is adopted, not written anew.
	file string
	written
	// last is what Ensure left, for Drift; nil before the first one.
	last atomic.Pointer[state]
}

// state is what the kernel has when nobody else has touched it.
type state struct {
	rules   Rules
	applied string
}

// written is the last write.
type written struct {
	// Applied is the table as the kernel lists it after the write, without what is
	// in the set of peers: what is listed otherwise is somebody else's doing.
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
	// Peers is how many were let in or shut out.
	Peers int
	// Forward is how many iptables rules were added.
	Forward int
	// Rebound is how many connections had a wrong source and begin anew.
	Rebound uint
}

// Ensure brings the rules to the goal. A table that is as it should be is not
// touched. Without look it is taken to be as the last call left it: then peers come
// and go by one message to the kernel, while looking takes several processes.
func (g *Guard) Ensure(ctx context.Context, r Rules, look bool) (Changes, error) {
	var c Changes
	tx := r.transaction(g.nft)
	from := tx.String()
	last := g.last.Load()
	if last != nil && !look && from == g.From {
		n, err := admit(last.rules.peers(), r.peers())
		if err == nil {
			c.Peers = n
			g.last.Store(&state{r, g.Applied})
			return c, nil
		}
		g.log.Debug("looks at the rules", "because", err)
	}
	now, err := list(ctx)
	if err != nil {
		return c, err
	}
	if now == "" || now != g.Applied || from != g.From {
		// One that is gone when the agent starts went with the machine's boot.
		c.Foreign = g.Applied != "" && now != g.Applied && (now != "" || last != nil)
		if err := g.write(ctx, tx, from, r.peers()); err != nil {
			return c, err
		}
		c.Written = true
	} else if err := g.mend(r, last, &c); err != nil {
		return c, err
	}
	g.last.Store(&state{r, g.Applied})
	c.Forward, err = forward(r)
	if err != nil {
		return c, err
	}
	if c.Written {
		c.Rebound, err = rebind(r)
	}
	return c, err
}

// mend compares the set with what is in the kernel.
func (g *Guard) mend(r Rules, last *state, c *Changes) error {
	have, err := admitted()
	if err != nil {
		return err
	}
	c.Foreign = last != nil && !maps.Equal(have, last.rules.peers())
	c.Peers, err = admit(have, r.peers())
	return err
}

// write defines the table, with the peers in it.
func (g *Guard) write(ctx context.Context, tx *knftables.Transaction, from string, peers map[netip.Addr]bool) error {
	for _, p := range slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare) {
		tx.Add(&knftables.Element{Set: peerSet, Key: []string{p.String()}})
	}
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

// Drift says what differs from what the last Ensure left.
func (g *Guard) Drift(ctx context.Context) ([]string, error) {
	last := g.last.Load()
	if last == nil {
		return []string{"write nftables table " + Table}, nil
	}
	now, err := list(ctx)
	switch {
	case err != nil:
		return nil, err
	case now == "":
		return []string{"write nftables table " + Table + ", which is gone"}, nil
	case now != last.applied:
		return []string{"write nftables table " + Table + ", which somebody has changed"}, nil
	}
	var out []string
	before := g.last.Load().rules.peers()
	have, err := admitted()
	if err != nil {
		return nil, err
	}
	// Ensure may have let somebody in meanwhile.
	if !maps.Equal(have, before) && !maps.Equal(have, g.last.Load().rules.peers()) {
		out = append(out, "fill set "+peerSet+" of nftables table "+Table+", which somebody has changed")
	}
	_, rules, err := refused(last.rules)
	if len(rules) > 0 {
		out = append(out, fmt.Sprintf("accept in iptables' FORWARD chain by %d rules", len(rules)))
	}
	return out, err
}

// list returns the table without counters and what is in named sets; empty if there
// is none. Handles are in it: a rule that was replaced by its like has another.
func list(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "nft", "--stateless", "--terse", "--handle", "list", "table", "ip", Table).Output()
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
	ipt, rules, err := refused(r)
	for i, rule := range rules {
		if err := ipt.Insert("filter", "FORWARD", 1, rule...); err != nil {
			return i, fmt.Errorf("accept forwarded packets in iptables: %w", err)
		}
	}
	return len(rules), err
}

// refused are the rules that the FORWARD chain lacks: none where it does not drop.
func refused(r Rules) (ipt *iptables.IPTables, lacks [][]string, err error) {
	if _, err := exec.LookPath("iptables"); err != nil {
		return nil, nil, nil
	}
	if ipt, err = iptables.New(iptables.Timeout(5)); err != nil {
		return nil, nil, fmt.Errorf("iptables: %w", err)
	}
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return nil, nil, fmt.Errorf("list iptables' FORWARD chain: %w", err)
	}
	if !drops(rules) {
		return ipt, nil, nil
	}
	comment := []string{"-m", "comment", "--comment", "netbridge", "-j", "ACCEPT"}
	want := [][]string{{"-i", r.Device}, {"-o", r.Device}}
	if r.Bridge != "" {
		want = append(want, []string{"-i", r.Bridge}, []string{"-o", r.Bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"})
	}
	for _, w := range want {
		rule := append(w, comment...)
		there, err := ipt.Exists("filter", "FORWARD", rule...)
		if err != nil {
			return nil, nil, fmt.Errorf("look for netbridge's rules in iptables: %w", err)
		}
		if !there {
			lacks = append(lacks, rule)
		}
	}
	return ipt, lacks, nil
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
