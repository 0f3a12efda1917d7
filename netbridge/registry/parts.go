package registry

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// Parts is into how many parts a watcher may divide each kind's records: by the first
// digit of the ID, which is a UUID on both sides. Consul's keys need not know of it.
const Parts = 16

const digits = "0123456789abcdef"

// MayDivide says why a node cannot follow the records in parts.
func MayDivide(self fabric.ID) error {
	_, name, _ := strings.Cut(string(self), "/")
	if name == "" || !strings.Contains(digits, name[:1]) {
		return fmt.Errorf("node ID %q does not begin with a hexadecimal digit, by which records are divided", self)
	}
	return nil
}

// dirs are the prefixes that are asked for.
func (w *Watcher) dirs() []string {
	if w.Parts <= 1 {
		return []string{"nodes/"}
	}
	var dirs []string
	for _, kind := range []string{fabric.KindNomad, fabric.KindK8s} {
		for _, d := range digits {
			dirs = append(dirs, "nodes/"+kind+"/"+string(d))
		}
	}
	return dirs
}

// answer is what one query has brought.
type answer struct {
	pairs api.KVPairs
	meta  *api.QueryMeta
}

// same says whether b has the same records, vouched for alike.
func (a answer) same(b answer) bool {
	if b.meta == nil || a.meta.KnownLeader != b.meta.KnownLeader || a.meta.ResultsFilteredByACLs != b.meta.ResultsFilteredByACLs {
		return false
	}
	return slices.EqualFunc(a.pairs, b.pairs, func(p, q *api.KVPair) bool { return p.Key == q.Key && p.ModifyIndex == q.ModifyIndex })
}

// merge makes one list of what the queries have brought last. What a complete list
// had, known, and this one lacks, counts as gone only when Consul says that it has
// not been emptied: the sentinel is in no part.
func (w *Watcher) merge(ctx context.Context, parts []part, known map[fabric.ID]fabric.Node) List {
	l := List{Nodes: map[fabric.ID]fabric.Node{}, Broken: map[string]error{}}
	for _, p := range parts {
		maps.Copy(l.Nodes, p.Nodes)
		maps.Copy(l.Broken, p.Broken)
		l.Index = max(l.Index, p.Index)
		if l.Incomplete == nil {
			l.Incomplete = p.Incomplete
		}
	}
	w.settle(&l)
	if l.Incomplete == nil && lacks(l.Nodes, known) {
		l.Incomplete = w.Registry.Intact(ctx)
	}
	return l
}

// lacks says whether something of known is missing; of nothing known all may be.
func lacks(nodes, known map[fabric.ID]fabric.Node) bool {
	for id := range known {
		if _, ok := nodes[id]; !ok {
			return true
		}
	}
	return known == nil
}
