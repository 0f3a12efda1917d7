package devcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
)

// agent is one process of Nomad.
type agent struct {
	// component is its name; see [Cluster.Start].
	component string
	// server and client say what it is; it may be both.
	server, client bool
	dataDir        string
	http           int
}

// agents are the processes of Nomad in the order in which they start: one, or
// two ([Options.SplitNomad]). Where there are two, the first is the server.
func (c *Cluster) agents() []agent {
	if !c.ownNomad() {
		return nil
	}
	one := agent{component: Nomad, server: true, client: true, dataDir: c.nomadDir(), http: c.Ports.NomadHTTP}
	if !c.opts.SplitNomad {
		return []agent{one}
	}
	return []agent{
		{component: Nomad, server: true, dataDir: filepath.Join(c.opts.shortDir(), "nomad-server"), http: c.Ports.NomadHTTP},
		{component: NomadClient, client: true, dataDir: c.nomadDir(), http: c.Ports.NomadClientHTTP},
	}
}

// agent is the Nomad agent that is the component of that name.
func (c *Cluster) agent(component string) (agent, bool) {
	for _, a := range c.agents() {
		if a.component == component {
			return a, true
		}
	}
	return agent{}, false
}

func (a agent) address() string { return fmt.Sprintf("http://127.0.0.1:%d", a.http) }

// startNomad starts every agent that does not run.
func (c *Cluster) startNomad(ctx context.Context) error {
	for _, a := range c.agents() {
		if err := c.Start(ctx, a.component); err != nil {
			return err
		}
	}
	return nil
}

// stopNomad stops the agents, the client before its server.
func (c *Cluster) stopNomad(ctx context.Context) error {
	var errs []error
	for _, a := range slices.Backward(c.agents()) {
		errs = append(errs, c.stopOne(ctx, a.component))
	}
	return errors.Join(errs...)
}

// nomadRuns says whether every agent does.
func (c *Cluster) nomadRuns() bool {
	return !slices.ContainsFunc(c.agents(), func(a agent) bool { return !c.Running(a.component) })
}

// nomadDir is the data_dir of the agent that runs pods.
func (c *Cluster) nomadDir() string { return filepath.Join(c.opts.shortDir(), "nomad") }

// bridge is the name of the pods' network bridge. Each cluster has its own, so
// that clearing one away never touches another, or a real Nomad's.
func (c *Cluster) bridge() string { return fmt.Sprintf("nkdev%d", c.opts.PortBase) }

// slot numbers clusters that run side by side, for what they must not share.
func (c *Cluster) slot() int {
	return ((c.opts.PortBase-DefaultPortBase)/20%64 + 64) % 64
}

// podSubnet is the pods' network on the bridge.
func (c *Cluster) podSubnet() string { return fmt.Sprintf("172.27.%d.0/22", c.slot()*4) }

// NomadTokenFile is the token that nomad-kubelet uses, if there are tokens.
func (c *Cluster) NomadTokenFile() string {
	switch {
	case c.opts.NomadTokenFile != "":
		return c.opts.NomadTokenFile
	case c.opts.ACL:
		return filepath.Join(c.opts.Dir, "nomad-kubelet.token")
	}
	return ""
}

// ManagementTokenFile is Nomad's bootstrap token, when ACL is set.
func (c *Cluster) ManagementTokenFile() string {
	return filepath.Join(c.opts.Dir, "nomad-management.token")
}

// NomadClient talks to Nomad with all rights.
func (c *Cluster) NomadClient() (*api.Client, error) {
	// Not DefaultConfig: it would take over NOMAD_TOKEN and friends.
	cfg := &api.Config{Address: c.NomadAddress(), TLSConfig: &api.TLSConfig{}}
	file := c.opts.NomadTokenFile
	if c.opts.ACL {
		file = c.ManagementTokenFile()
	}
	if token, err := os.ReadFile(file); err == nil {
		cfg.SecretID = strings.TrimSpace(string(token))
	}
	return api.NewClient(cfg)
}

// agentCommand runs an agent with exactly the files of deploy/nomad and what
// they leave to the machine.
func (c *Cluster) agentCommand(a agent) (command, error) {
	path, err := c.find("nomad")
	if err != nil {
		return command{}, err
	}
	machine, err := c.machineHCL(a)
	if err != nil {
		return command{}, err
	}
	dir := filepath.Join(c.opts.Dir, "nomad-config", a.component)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return command{}, err
	}
	args := []string{"agent"}
	for _, f := range []struct {
		name, text string
		wanted     bool
	}{
		{"1-server.hcl", c.opts.ServerHCL, a.server}, {"2-client.hcl", c.opts.ClientHCL, a.client},
		{"3-machine.hcl", machine, true}, {"4-extra.hcl", c.opts.ExtraNomadHCL, true},
	} {
		if !f.wanted {
			continue
		}
		file := filepath.Join(dir, f.name)
		if err := os.WriteFile(file, []byte(f.text), 0o644); err != nil {
			return command{}, err
		}
		args = append(args, "-config="+file)
	}
	var env []string
	if c.dockerHost != "" {
		// Not in the plugin block: a second one would replace client.hcl's.
		host := c.dockerHost
		if c.proxied() {
			host = c.dockerProxyHost()
		}
		env = append(env, "DOCKER_HOST="+host)
	}
	return command{path: path, args: args, env: env}, nil
}

// seedNomad runs the server alone until it has its keyring. A client that
// registers in the moment before is refused and tries again only after 15 to 30
// seconds, which on the first start of agent and server in one happens each time.
// A server of its own starts first anyhow.
func (c *Cluster) seedNomad(ctx context.Context) error {
	const seed = "nomad-seed"
	if c.opts.SplitNomad {
		return nil
	}
	defer c.Stop(context.WithoutCancel(ctx), seed)
	if err := c.Stop(ctx, seed); err != nil { // of an interrupted start
		return err
	}
	if c.Running(Nomad) || exists(filepath.Join(c.nomadDir(), "client")) {
		return nil
	}
	return c.step("nomad keyring", func() (string, error) {
		server := c.agents()[0]
		server.component, server.client = seed, false
		cmd, err := c.agentCommand(server)
		if err != nil {
			return "", err
		}
		ch, err := c.spawn(seed, cmd)
		if err != nil {
			return "", err
		}
		return "", c.ready(ctx, seed, ch, c.keyringReady)
	})
}

// machineHCL is what client.hcl and server.hcl leave to each machine. Of the
// ports an agent that is a client alone opens only the first.
func (c *Cluster) machineHCL(a agent) (string, error) {
	cni := findCNI()
	if cni == "" && !c.opts.NoDocker {
		return "", fmt.Errorf("the CNI plugins are missing: install containernetworking-plugins, or unpack them to %s", cniDirs[0])
	}
	network, join := "", ""
	if len(globalAddresses()) == 0 {
		network = `network_interface = "lo" # this machine has no other`
	}
	if c.opts.PodNetwork {
		plugin, err := c.find(netbridgeIPAM)
		if err != nil {
			return "", err
		}
		cni = filepath.Dir(plugin) + ":" + cni
		network = fmt.Sprintf("network_interface = %q", c.underlayDevice())
		join = fmt.Sprintf("cni_config_dir = %q", c.cniConfigDir())
	}
	ports := 20000 + c.slot()%6*2000
	return fmt.Sprintf(`# Written by nomad-kubelet dev: what deploy/nomad leaves to each machine.
name      = "dev-client"
data_dir  = %[1]q
bind_addr = "127.0.0.1"
log_level = "INFO"

disable_update_check = true

ports {
  http = %[2]d
  rpc  = %[3]d
  serf = %[4]d
}

# A loopback address has to be advertised explicitly.
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}

server {
  bootstrap_expect = 1
}

client {
  servers           = ["127.0.0.1:%[3]d"]
  cpu_total_compute = %[5]d # 1000 * cores
  cni_path          = %[6]q
  alloc_mounts_dir  = %[13]q
  min_dynamic_port  = %[7]d
  max_dynamic_port  = %[8]d

  bridge_network_name   = %[9]q
  bridge_network_subnet = %[10]q
  %[11]s
  %[14]s

  options {
    # Asking clouds for metadata delays the start on a machine in none.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}

consul {
  # A Consul agent on this machine is none of ours.
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}

acl {
  enabled = %[12]t
}
`, a.dataDir, a.http, c.Ports.NomadRPC, c.Ports.NomadSerf, 1000*runtime.NumCPU(), cni,
		ports, ports+1999, c.bridge(), c.podSubnet(), network, c.opts.ACL, filepath.Join(c.nomadDir(), "alloc_mounts"), join), nil
}

// cniDirs are the usual places of the CNI plugins.
var cniDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

func findCNI() string {
	dirs := cniDirs
	if path := lookPath("host-local"); path != "" {
		dirs = append([]string{filepath.Dir(path)}, dirs...)
	}
	for _, dir := range dirs {
		if exists(filepath.Join(dir, "bridge")) && exists(filepath.Join(dir, "portmap")) && exists(filepath.Join(dir, "firewall")) {
			return dir
		}
	}
	return ""
}

// agentReady asks a server for its leader and its keyring, and for a client as
// the scheduler sees it. With access control on there is no token yet, so the
// agent's health must do; and so it must for a client whose server is away.
func (c *Cluster) agentReady(a agent) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := httpOK(a.address() + "/v1/agent/health")(ctx); err != nil {
			return err
		}
		switch {
		case !a.client:
			return c.keyringReady(ctx)
		case c.opts.ACL && !exists(c.ManagementTokenFile()), !c.Running(Nomad):
			return nil
		}
		return c.clientReady(ctx)
	}
}

// keyringReady is true once the server takes clients.
func (c *Cluster) keyringReady(ctx context.Context) error {
	return httpSays(c.NomadAddress()+"/.well-known/jwks.json", `"kid"`)(ctx)
}

func (c *Cluster) clientReady(ctx context.Context) error {
	client, err := c.NomadClient()
	if err != nil {
		return err
	}
	nodes, _, err := client.Nodes().List((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list Nomad clients: %w", err)
	}
	for _, n := range nodes {
		if n.Status == "ready" && (c.opts.NoDocker || n.Drivers["docker"] != nil && n.Drivers["docker"].Healthy) {
			return nil
		}
	}
	return fmt.Errorf("no Nomad client is ready with a healthy docker driver (%d registered)", len(nodes))
}

// bootstrapACL makes the management token, and the policies and tokens of who works
// with Nomad.
func (c *Cluster) bootstrapACL(ctx context.Context) error {
	client, err := c.NomadClient()
	if err != nil {
		return err
	}
	if !exists(c.ManagementTokenFile()) {
		err := poll(ctx, 200e6, func(context.Context) error {
			token, _, err := client.ACLTokens().Bootstrap(nil)
			if err != nil {
				return err
			}
			return os.WriteFile(c.ManagementTokenFile(), []byte(token.SecretID+"\n"), 0o600)
		})
		if err != nil {
			return fmt.Errorf("bootstrap Nomad's access control: %w", err)
		}
		if client, err = c.NomadClient(); err != nil {
			return err
		}
	}
	if err := makeToken(client, "nomad-kubelet", c.opts.PolicyHCL, c.NomadTokenFile()); err != nil {
		return err
	}
	if c.opts.PodNetwork {
		if err := makeToken(client, "netbridge-agent", deploynomad.NetbridgeAgent, c.netbridgeTokenFile()); err != nil {
			return err
		}
	}
	return c.ready(ctx, Nomad, nil, c.clientReady)
}

// makeToken writes the policy, and a token of it into the file, unless that is there.
func makeToken(client *api.Client, name, rules, file string) error {
	if exists(file) {
		return nil
	}
	if _, err := client.ACLPolicies().Upsert(&api.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
		return fmt.Errorf("write Nomad policy %s: %w", name, err)
	}
	token, _, err := client.ACLTokens().Create(&api.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
	if err != nil {
		return fmt.Errorf("create Nomad token %s: %w", name, err)
	}
	return os.WriteFile(file, []byte(token.SecretID+"\n"), 0o600)
}
