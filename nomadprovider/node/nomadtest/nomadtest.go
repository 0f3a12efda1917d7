// Package nomadtest starts a real Nomad agent for tests, on ports of its own.
package nomadtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// startTimeout is generous: the machine may build something else meanwhile.
const startTimeout = 60 * time.Second

// Agent is a server and client in one process.
type Agent struct {
	Client *api.Client
	// Address is the HTTP API's URL.
	Address string
	cmd     *exec.Cmd
}

// Start runs bin/nomad agent -dev with extra configuration (HCL), until the
// test ends, and waits for its client to be ready. The test is skipped only
// when that program is not built.
func Start(t testing.TB, extra string) *Agent {
	t.Helper()
	bin := binary(t)
	dir := t.TempDir()
	ports := freePorts(t, 3)
	conf := fmt.Sprintf(`
bind_addr = "127.0.0.1"
ports { 
  http = %d
  rpc  = %d
  serf = %d
}
client { 
  alloc_dir = %q
  options { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" }
}
`, ports[0], ports[1], ports[2], filepath.Join(dir, "alloc"))
	for name, text := range map[string]string{"base.hcl": conf, "extra.hcl": extra} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "nomad.log"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Address: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	a.cmd = exec.Command(bin, "agent", "-dev",
		"-config", filepath.Join(dir, "base.hcl"), "-config", filepath.Join(dir, "extra.hcl"))
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.Env = environment()
	if err := a.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", bin, err)
	}
	t.Cleanup(func() {
		a.Stop()
		unmountBelow(t, dir)
		_ = log.Close()
		if t.Failed() {
			if out, err := os.ReadFile(log.Name()); err == nil {
				t.Logf("nomad's log ends with:\n%s", out[max(0, len(out)-4000):])
			}
		}
	})
	a.Client, err = api.NewClient(&api.Config{Address: a.Address})
	if err != nil {
		t.Fatal(err)
	}
	a.waitReady(t)
	return a
}

// unmountBelow removes the file systems of tasks' secrets, which the agent
// leaves mounted.
func unmountBelow(t testing.TB, dir string) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return // not Linux
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if err := syscall.Unmount(f[1], syscall.MNT_DETACH); err != nil {
				t.Logf("unmount %s: %v", f[1], err)
			}
		}
	}
}

// Stop ends the agent and waits for it; the jobs' processes end with it.
func (a *Agent) Stop() {
	if a.cmd.ProcessState != nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGINT)
	gone := make(chan struct{})
	go func() {
		_ = a.cmd.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(15 * time.Second):
		_ = a.cmd.Process.Kill()
		<-gone
	}
}

// Pause and Resume stop and continue the agent: it stays connected and does
// not answer.
func (a *Agent) Pause() { _ = a.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (a *Agent) Resume() { _ = a.cmd.Process.Signal(syscall.SIGCONT) }

// Run registers a job and returns its allocation once a task of it runs or
// has ended.
func (a *Agent) Run(t testing.TB, job *api.Job) *api.AllocationListStub {
	t.Helper()
	if _, _, err := a.Client.Jobs().Register(job, nil); err != nil {
		t.Fatalf("register job %s: %v", *job.ID, err)
	}
	var stub *api.AllocationListStub
	Eventually(t, 60*time.Second, "an allocation of job "+*job.ID+" runs", func() bool {
		allocs, _, err := a.Client.Jobs().Allocations(*job.ID, false, nil)
		if err != nil || len(allocs) == 0 {
			return false
		}
		stub = allocs[0]
		for _, task := range stub.TaskStates {
			if task.StartedAt.IsZero() {
				return false
			}
		}
		return len(stub.TaskStates) > 0
	})
	// The agent leaves its tasks running when it ends, so they end before it.
	t.Cleanup(func() {
		if _, _, err := a.Client.Jobs().Deregister(*job.ID, false, nil); err != nil {
			return // the test has stopped the agent
		}
		Eventually(t, 30*time.Second, "job "+*job.ID+" has ended", func() bool {
			got, _, err := a.Client.Allocations().Info(stub.ID, nil)
			return err != nil || got.ClientTerminalStatus()
		})
	})
	return stub
}

func (a *Agent) waitReady(t testing.TB) {
	t.Helper()
	Eventually(t, startTimeout, "Nomad's client is ready", func() bool {
		nodes, _, err := a.Client.Nodes().List((&api.QueryOptions{}).WithContext(context.Background()))
		return err == nil && len(nodes) == 1 && nodes[0].Status == api.NodeStatusReady
	})
}

// Eventually waits for cond.
func Eventually(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("not within %s: %s", timeout, what)
}

// binary finds bin/nomad above this file, or skips.
func binary(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	for dir := filepath.Dir(file); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			bin := filepath.Join(dir, "bin", "nomad")
			if _, err := os.Stat(bin); err != nil {
				t.Skip("bin/nomad is not built")
			}
			return bin
		}
	}
	t.Skip("no module root")
	return ""
}

// environment is ours without what bends a Nomad agent: settings for its
// clients, and a CA bundle that its AWS library would insist on.
func environment() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "NOMAD_") && !strings.HasPrefix(v, "AWS_") {
			out = append(out, v)
		}
	}
	return out
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}
