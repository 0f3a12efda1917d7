package netbridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

const (
	// serverEnv makes this binary a server at the address that it has.
	serverEnv = "NETBRIDGE_BED_SERVER"
	// timedPlugin is this binary as a CNI plugin that runs the real one of its name.
	timedPlugin = "bridge"
	// timesFile has the real plugin's times, lossFile makes it fail at DEL, both
	// beside the timed one.
	timesFile = "times"
	lossFile  = "lose-del"
	webPort   = "8080"
)

// serve tells its callers their addresses; asked with ?to=, what the server there
// tells it.
func serve(address string) {
	_ = http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.FormValue("to"); to != "" {
			_, _ = io.WriteString(w, get((&net.Dialer{}).DialContext, "http://"+to))
			return
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host)
	}))
}

// timed runs the real plugin and writes down how long it took.
func timed() int {
	cmd := exec.Command(filepath.Join(cniDir, timedPlugin))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	dir, command := filepath.Dir(os.Args[0]), os.Getenv("CNI_COMMAND")
	if _, err := os.Stat(filepath.Join(dir, lossFile)); err == nil && command == "DEL" {
		note(dir, "LOST", 0)
		return 1
	}
	began := time.Now()
	err := cmd.Run()
	if command != "" {
		note(dir, command, time.Since(began))
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func note(dir, command string, took time.Duration) {
	f, err := os.OpenFile(filepath.Join(dir, timesFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	fmt.Fprintln(f, command, int64(took))
	_ = f.Close()
}

// nomad is a Nomad agent on a host, in process and mount namespaces that end with
// it, and with them all that it has started and mounted: its end is like the
// machine's.
type nomad struct {
	*nomadapi.Client
	host *host
	node string
	file string
	cmd  *exec.Cmd
}

func newNomad(t *testing.T, h *host, server *host) *nomad {
	t.Helper()
	netlab.Root(t, "nomad", "unshare")
	n := &nomad{host: h, file: filepath.Join(h.dir, "nomad.hcl")}
	plugins := filepath.Join(h.dir, "plugins")
	self, err := os.Executable()
	if err == nil {
		err = os.Mkdir(plugins, 0o755)
	}
	if err == nil {
		err = os.Symlink(self, filepath.Join(plugins, timedPlugin))
	}
	group := fmt.Sprintf("/netbridge-bed-%d-%s", os.Getpid(), h.Name)
	config := fmt.Sprintf(`
data_dir = %q
bind_addr = "0.0.0.0"
advertise {
  http = %[2]q
  rpc  = %[2]q
  serf = %[2]q
}
server {
  enabled          = %[3]t
  bootstrap_expect = %[4]d
}
client {
  enabled           = true
  servers           = ["%[5]s:4647"]
  network_interface = "eth0"
  cni_path          = "%[6]s"
  cni_config_dir    = %[7]q
  cgroup_parent     = %[8]q
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
`, filepath.Join(h.dir, "nomad"), h.ep.String(), h == server, btoi(h == server), server.ep,
		strings.Join([]string{plugins, filepath.Dir(program), cniDir}, ":"), filepath.Join(h.dir, "cni"), group)
	if err == nil {
		err = os.WriteFile(n.file, []byte(config), 0o600)
	}
	if err == nil {
		n.Client, err = nomadapi.NewClient(&nomadapi.Config{Address: "http://127.0.0.1:4646", HttpClient: &http.Client{Transport: &http.Transport{DialContext: h.Dial}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			out, _ := os.ReadFile(n.file + ".log")
			lines := strings.Split(string(out), "\n")
			t.Logf("Nomad of %s:\n%s", h.Name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
		for _, g := range groups {
			_ = exec.Command("find", g, "-depth", "-type", "d", "-delete").Run()
		}
	})
	n.start(t)
	return n
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// start runs the agent and waits until its client is ready.
func (n *nomad) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(n.file+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
		"sh", "-c", `mount -t tmpfs none /run && mkdir /run/netns && mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni && exec nomad agent -config="$0"`, n.file)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.host.Start(n.cmd); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Nomad client on "+n.host.Name, time.Minute, func() bool {
		self, err := n.Agent().Self()
		if err != nil {
			return false
		}
		n.node = self.Stats["client"]["node_id"]
		info, _, err := n.Nodes().Info(n.node, nil)
		return err == nil && info.Status == "ready"
	})
}

// kill is a machine that loses its power.
func (n *nomad) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// hangup is SIGHUP to the agent, the one process below cmd.
func (n *nomad) hangup(t *testing.T) {
	t.Helper()
	pid := n.cmd.Process.Pid
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err == nil {
		err = syscall.Kill(child, syscall.SIGHUP)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after %s", what, limit)
		}
	}
}

func ref[T any](v T) *T { return &v }

// job has servers in the pod network, on one client or on as many as there are.
func job(t *testing.T, name string, count int, node string) *nomadapi.Job {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ready := &nomadapi.Constraint{LTarget: "${meta." + agent.MetaKey + "}", Operand: "=", RTarget: agent.MetaReady}
	where := &nomadapi.Constraint{Operand: "distinct_hosts", RTarget: "true"}
	if node != "" {
		where = &nomadapi.Constraint{LTarget: "${node.unique.id}", Operand: "=", RTarget: node}
	}
	return &nomadapi.Job{ID: &name, Datacenters: []string{"dc1"}, Constraints: []*nomadapi.Constraint{ready, where}, TaskGroups: []*nomadapi.TaskGroup{{
		Name:     &name,
		Count:    &count,
		Networks: []*nomadapi.NetworkResource{{Mode: "cni/netbridge"}},
		Tasks: []*nomadapi.Task{{Name: "web", Driver: "raw_exec", Config: map[string]any{"command": self}, Env: map[string]string{serverEnv: ":" + webPort},
			Resources: &nomadapi.Resources{CPU: ref(20), MemoryMB: ref(32)}}},
	}}}
}

// run registers the job and waits for its allocations, which run and have
// addresses.
func (n *nomad) run(t *testing.T, j *nomadapi.Job) []*nomadapi.Allocation {
	t.Helper()
	if _, _, err := n.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	return n.await(t, j)
}

func (n *nomad) await(t *testing.T, j *nomadapi.Job) []*nomadapi.Allocation {
	t.Helper()
	var out []*nomadapi.Allocation
	eventually(t, "running "+*j.ID, time.Minute, func() bool {
		out = n.running(*j.ID)
		return len(out) == *j.TaskGroups[0].Count
	})
	return out
}

func (n *nomad) running(name string) (out []*nomadapi.Allocation) {
	list, _, err := n.Jobs().Allocations(name, true, nil)
	if err != nil {
		return nil
	}
	for _, a := range list {
		alloc, _, err := n.Allocations().Info(a.ID, nil)
		if err == nil && alloc.ClientStatus == "running" && alloc.NetworkStatus != nil {
			out = append(out, alloc)
		}
	}
	return out
}

// waits says that the scheduler has looked at the job and found no client for it.
func (n *nomad) waits(name string) bool {
	evals, _, err := n.Jobs().Evaluations(name, nil)
	return err == nil && slices.ContainsFunc(evals, func(e *nomadapi.Evaluation) bool { return e.Status == "blocked" })
}

func (n *nomad) stop(t *testing.T, name string) {
	t.Helper()
	if _, _, err := n.Jobs().Deregister(name, true, nil); err != nil {
		t.Fatal(err)
	}
}

func get(dial func(context.Context, string, string) (net.Conn, error), address string) string {
	web := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	resp, err := web.Get(address)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

// Allocations of two real Nomad clients: each agent asks Nomad for its node's ID;
// the addresses that Nomad reports are reached from each other and from the
// cluster, callers are seen as they are; a machine that comes back has the same
// addresses; they are given back when a job ends, and collected when Nomad could
// not give them back.
func TestOnNomad(t *testing.T) {
	b := emptyBed(t)
	b.settings.BlockBits = 26
	b.set()
	client := func(c map[string]any) {
		c["node"] = map[string]any{"kind": "nomad"}
		c["nomad"] = map[string]any{"address": "http://127.0.0.1:4646"}
	}
	k8s, nom1, nom2 := b.host("k8s/k8s1", 1, 21), b.host("nomad/nom1", 1, 11, client), b.host("nomad/nom2", 2, 12, client)
	k8s.flannel()
	k8s.start()
	one := newNomad(t, nom1, nom1)
	two := newNomad(t, nom2, nom1)
	// A job that comes before its network waits for it.
	early := job(t, "web", 2, "")
	if _, _, err := one.Jobs().Register(early, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "job that waits", 20*time.Second, func() bool { return one.waits("web") })
	for _, n := range []*nomad{one, two} {
		n.host.id = fabric.ID("nomad/" + n.node)
		n.host.start()
	}
	for _, n := range []*nomad{one, two} {
		st := n.host.until("its peers", func(st agent.Status) bool { return len(st.Peers) == 2 && len(st.Drift) == 0 })
		if st.ID != n.host.id {
			t.Errorf("the agent is %s, the client %s", st.ID, n.host.id)
		}
	}
	if r := one.host.doctor(t); !slices.Equal(failed(r), []string{"network cni/netbridge"}) {
		t.Errorf("before SIGHUP: %+v", r)
	}
	began := time.Now()
	for _, n := range []*nomad{one, two} {
		n.hangup(t)
	}
	web := one.await(t, early)
	t.Logf("allocations that waited run %s after their clients were told to look for the network", time.Since(began))
	p := k8s.pod()
	meet(t, p, web)
	for _, n := range []*nomad{one, two} {
		if r := n.host.doctor(t); len(failed(r)) > 0 {
			t.Errorf("%s, which is well: %+v", n.host.Name, r)
		}
	}
	after := restart(t, one, two, web)
	meet(t, p, after)
	one.addTimes(t)
	one.fenced(t, b)
	one.stop(t, "web")
	two.host.until("its address back", func(st agent.Status) bool { return st.Used == 0 })
	one.loseDel(t)
}

// meet has allocations call each other, and the pod in the cluster call them.
func meet(t *testing.T, p *pod, allocs []*nomadapi.Allocation) {
	t.Helper()
	for _, a := range allocs {
		at := "http://" + net.JoinHostPort(a.NetworkStatus.Address, webPort)
		eventually(t, "call from the cluster, as "+p.ip, 20*time.Second, func() bool { return get(p.Dial, at) == p.ip })
		for _, o := range allocs {
			if o == a {
				continue
			}
			to := at + "?to=" + url.QueryEscape(net.JoinHostPort(o.NetworkStatus.Address, webPort))
			if seen := get(p.Dial, to); seen != a.NetworkStatus.Address {
				t.Errorf("%s is seen by %s as %s", a.NetworkStatus.Address, o.NetworkStatus.Address, seen)
			}
		}
	}
}

// restart is one client's machine losing its power. Its allocation comes back with
// the address that it had.
func restart(t *testing.T, server, n *nomad, allocs []*nomadapi.Allocation) []*nomadapi.Allocation {
	t.Helper()
	i := slices.IndexFunc(allocs, func(a *nomadapi.Allocation) bool { return a.NodeID == n.node })
	if i < 0 {
		t.Fatal("no allocation on ", n.host.Name)
	}
	n.kill()
	n.host.kill()
	n.host.Run("ip link del nb0")
	n.host.Run("ip link del nbr0")
	n.host.Run("nft flush ruleset")
	n.host.start()
	n.start(t)
	var now []*nomadapi.Allocation
	eventually(t, "allocation that was restarted", time.Minute, func() bool {
		now = server.running("web")
		return len(now) == len(allocs) && slices.ContainsFunc(now, func(a *nomadapi.Allocation) bool {
			return a.ID == allocs[i].ID && len(a.TaskStates["web"].Events) > len(allocs[i].TaskStates["web"].Events)
		})
	})
	for _, a := range now {
		if a.ID == allocs[i].ID && a.NetworkStatus.Address != allocs[i].NetworkStatus.Address {
			t.Errorf("its address was %s and is %s", allocs[i].NetworkStatus.Address, a.NetworkStatus.Address)
		}
	}
	n.host.settled()
	return now
}

// addTimes measures what Nomad waits for, under its lock for all set-ups: one
// allocation after the other, then many that start at once.
func (n *nomad) addTimes(t *testing.T) {
	const serial, burst = 8, 15
	n.measure(t, "one after the other", serial, func() {
		for i := range serial {
			n.run(t, job(t, fmt.Sprint("one", i), 1, n.node))
		}
		for i := range serial {
			n.stop(t, fmt.Sprint("one", i))
		}
	})
	n.measure(t, "at once", burst, func() {
		seen := map[string]bool{}
		for _, a := range n.run(t, job(t, "many", burst, n.node)) {
			addr, err := netip.ParseAddr(a.NetworkStatus.Address)
			if err != nil || !b77.Contains(addr) || seen[addr.String()] {
				t.Errorf("%s is no address of its own: %v", a.NetworkStatus.Address, err)
			}
			seen[addr.String()] = true
		}
		n.stop(t, "many")
	})
}

// measure runs f, which starts and stops so many allocations beside one that is
// there.
func (n *nomad) measure(t *testing.T, how string, count int, f func()) {
	t.Helper()
	_ = os.Remove(filepath.Join(n.host.dir, "plugins", timesFile))
	f()
	n.host.until("their addresses back", func(st agent.Status) bool { return st.Used == 1 })
	times := n.times(t)
	for _, command := range []string{"ADD", "DEL"} {
		took := times[command]
		slices.Sort(took)
		if len(took) < count {
			t.Fatalf("%d of %s, want %d", len(took), command, count)
		}
		t.Logf("%d %s by Nomad, %s: p50 %s, max %s", len(took), command, how, took[len(took)/2], took[len(took)-1])
	}
}

// times are what the plugin wrote down, by command.
func (n *nomad) times(t *testing.T) map[string][]time.Duration {
	data, err := os.ReadFile(filepath.Join(n.host.dir, "plugins", timesFile))
	if err != nil {
		t.Fatal(err)
	}
	times := map[string][]time.Duration{}
	for line := range strings.Lines(string(data)) {
		var command string
		var took int64
		if _, err := fmt.Sscan(line, &command, &took); err != nil {
			t.Fatal(line, err)
		}
		times[command] = append(times[command], time.Duration(took))
	}
	return times
}

var b77 = netip.MustParsePrefix("10.77.0.0/16")

// fenced is a client whose block is another's in the record: jobs wait, until it is
// its own again.
func (n *nomad) fenced(t *testing.T, b *bed) {
	restore := b.steal(t, n.host)
	n.host.kill()
	n.host.start()
	n.host.until("a fence", func(st agent.Status) bool { return st.Fenced != "" })
	eventually(t, "client that is not offered", time.Minute, func() bool {
		info, _, err := n.Nodes().Info(n.node, nil)
		return err == nil && info.Meta[agent.MetaKey] == ""
	})
	j := job(t, "patient", 1, n.node)
	if _, _, err := n.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "job that waits", 20*time.Second, func() bool { return n.waits("patient") })
	restore()
	began := time.Now()
	n.await(t, j)
	t.Logf("a job that waited for the end of a fence runs %s after it", time.Since(began))
	n.stop(t, "patient")
	n.host.until("its address back", func(st agent.Status) bool { return st.Used == 1 })
}

// loseDel is an allocation whose address Nomad could not give back, beside one
// that lives.
func (n *nomad) loseDel(t *testing.T) {
	lives := n.run(t, job(t, "lives", 1, n.node))[0]
	n.run(t, job(t, "lost", 1, n.node))
	if err := os.WriteFile(filepath.Join(n.host.dir, "plugins", lossFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	n.stop(t, "lost")
	eventually(t, "DEL that fails", time.Minute, func() bool { return len(n.times(t)["LOST"]) > 0 })
	if err := os.Remove(filepath.Join(n.host.dir, "plugins", lossFile)); err != nil {
		t.Fatal(err)
	}
	if st, err := n.host.status(); err != nil || st.Used != 2 {
		t.Fatalf("the address was not lost: %d are used, %v", st.Used, err)
	}
	var used []string
	eventually(t, "collection", ipam.Grace+2*time.Minute, func() bool {
		store, err := ipam.Open(filepath.Join(n.host.dir, "state", "ipam"))
		if err != nil {
			t.Fatal(err)
		}
		entries, err := store.Entries()
		if err != nil {
			t.Fatal(err)
		}
		used = nil
		for _, e := range entries {
			used = append(used, e.Address.String()+" of "+e.Owner.Container)
		}
		return len(used) < 2
	})
	t.Logf("the lost address was collected %s after its job was stopped", time.Since(began))
	if want := lives.NetworkStatus.Address + " of " + lives.ID; len(used) != 1 || used[0] != want {
		t.Errorf("in use are %v, want %s", used, want)
	}
	if time.Since(began) < ipam.Grace {
		t.Errorf("it was collected before it could be known to be lost")
	}
}
