package devcluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// With SplitNomad every part that deals with components knows of two agents,
// in a later program too; without, of one.
func TestSplitNomad(t *testing.T) {
	for _, split := range []bool{false, true} {
		c := testCluster(t)
		c.opts.SplitNomad, c.opts.OnPremNode = split, true
		if err := c.save(); err != nil {
			t.Fatal(err)
		}
		c, err := Open(c.Dir())
		if err != nil {
			t.Fatal(err)
		}
		started := c.started()
		if !slices.Contains(started, Nomad) || slices.Contains(started, NomadClient) != split {
			t.Errorf("split %v: starts %v", split, started)
		}
		taken, of := map[int]string{c.Ports.Kubelet: "nomad-kubelet"}, map[string]bool{}
		for _, p := range c.portsOf() {
			if other, twice := taken[p.port]; twice && other != p.component {
				t.Errorf("split %v: port %d is for %s and %s", split, p.port, other, p.component)
			}
			if p.port >= c.opts.PortBase+20 {
				t.Errorf("split %v: port %d of %s is the next cluster's", split, p.port, p.component)
			}
			taken[p.port], of[p.component] = p.component, true
		}
		if !of[Nomad] || of[NomadClient] != split {
			t.Errorf("split %v: ports of %v", split, of)
		}
	}
}

// Each agent is run with the files that make it what it is, and with its own
// data: the client's is where the pods' allocations are looked for.
func TestAgentCommand(t *testing.T) {
	c := testCluster(t)
	c.opts.BinDir, c.opts.NoDocker = t.TempDir(), true
	if err := os.WriteFile(filepath.Join(c.opts.BinDir, "nomad"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	files := func() map[string]string {
		out := map[string]string{}
		for _, a := range c.agents() {
			cmd, err := c.agentCommand(a)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, arg := range cmd.args[1:] {
				names = append(names, filepath.Base(arg))
			}
			machine, err := os.ReadFile(filepath.Join(c.Dir(), "nomad-config", a.component, "3-machine.hcl"))
			if err != nil || !strings.Contains(string(machine), `data_dir  = "`+a.dataDir+`"`) {
				t.Errorf("%s: data_dir is not %s: %v\n%s", a.component, a.dataDir, err, machine)
			}
			if a.client != (a.dataDir == c.nomadDir()) {
				t.Errorf("%s: client %v, data in %s", a.component, a.client, a.dataDir)
			}
			out[a.component] = strings.Join(names, " ")
		}
		return out
	}
	if got := files(); len(got) != 1 || got[Nomad] != "1-server.hcl 2-client.hcl 3-machine.hcl 4-extra.hcl" {
		t.Errorf("one agent: %v", got)
	}
	c.opts.SplitNomad = true
	if got := files(); len(got) != 2 || got[Nomad] != "1-server.hcl 3-machine.hcl 4-extra.hcl" || got[NomadClient] != "2-client.hcl 3-machine.hcl 4-extra.hcl" {
		t.Errorf("two agents: %v", got)
	}
}
