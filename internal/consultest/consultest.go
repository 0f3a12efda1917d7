package consultest

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

// Token has all rights on a server with ACLs.
const Token = "5f3c7f0e-8a11-4a53-9d3b-3a3f8f1c2b77"

// Server is one Consul server.
type Server struct {
	Client *api.Client
	// Address is CONSUL_HTTP_ADDR by the socket.
	Address string

	t   testing.TB
	ns  *netlab.NS
	bin string
	dir string
	cmd *exec.Cmd
}

// DNSPort is where a server answers DNS, on the namespace's loopback.
const DNSPort = 8600

// Start runs a server, which listens on all addresses of the namespace, too.
func Start(t testing.TB, ns *netlab.NS, acls bool) *Server {
	t.Helper()
	bin := find(t)
	dir, err := os.MkdirTemp("", "consul")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{Address: "unix://" + filepath.Join(dir, "http.sock"), t: t, ns: ns, bin: bin, dir: dir}
	config := map[string]any{
		"server": true, "bootstrap_expect": 1, "data_dir": filepath.Join(dir, "data"), "bind_addr": "127.0.0.1", "advertise_addr": "127.0.0.1",
		"addresses": map[string]any{"http": s.Address + " 0.0.0.0"}, "ports": map[string]any{"dns": DNSPort, "grpc": -1, "grpc_tls": -1},
		"performance": map[string]any{"raft_multiplier": 1}, "disable_update_check": true, "log_level": "warn", "connect": map[string]any{"enabled": false},
		"limits": map[string]any{"http_max_conns_per_client": 200},
	}
	if acls {
		config["acl"] = map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]any{"initial_management": Token}}
	}
	data, _ := json.Marshal(config)
	if err := os.WriteFile(filepath.Join(dir, "consul.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := api.DefaultConfig()
	cfg.Address = s.Address
	if acls {
		cfg.Token = Token
	}
	if s.Client, err = api.NewClient(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.Up()
	return s
}

func find(t testing.TB) string {
	t.Helper()
	if p, err := exec.LookPath("consul"); err == nil {
		return p
	}
	dir, _ := os.Getwd()
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if p, err := exec.LookPath(filepath.Join(dir, "bin/consul")); err == nil {
			return p
		}
	}
	t.Skip("needs consul: make bin/consul")
	return ""
}

// Up starts the server, with the data that it had, and waits for its leader.
func (s *Server) Up() {
	s.t.Helper()
	s.cmd = exec.Command(s.bin, "agent", "-config-file="+filepath.Join(s.dir, "consul.json"))
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	err = s.ns.Start(s.cmd)
	_ = log.Close()
	if err != nil {
		s.t.Fatalf("start consul: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		_, meta, err := s.Client.KV().Get("ready", (&api.QueryOptions{}).WithContext(ctx))
		if err == nil && meta.KnownLeader {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	s.t.Fatalf("consul has no leader after a minute:\n%s", out)
}

// Stop kills the server; its data stay.
func (s *Server) Stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Freeze stops it without closing anything, Thaw lets it go on.
func (s *Server) Freeze() { _ = s.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (s *Server) Thaw() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }

// Wipe has the server come back with nothing but the [Token].
func (s *Server) Wipe() {
	s.t.Helper()
	s.Stop()
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		s.t.Fatal(err)
	}
	s.Up()
}
