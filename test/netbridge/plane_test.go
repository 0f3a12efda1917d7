package netbridge

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	// controlled is the fabric that the files of deploy name.
	controlled = "default"
	// planeHold is the controllers' hold, collectAfter their collect.after.
	planeHold    = 8 * time.Second
	collectAfter = 4 * time.Second
	planeAddress = "192.168.101.1"
)

// plane is a Kubernetes without kubelets, a Nomad and a Consul, all with access
// control, on one machine that is a network namespace, and two controllers with
// exactly the rights that deploy gives them.
type plane struct {
	*bed
	dir   string
	c     *devcluster.Cluster
	kube  *kubernetes.Clientset
	nomad *nomadapi.Client
	// policies and tokens are Consul's, by name, so that an emptied one can be given
	// them again.
	policies, tokens map[string]string
	replicas         []*replica
}

// replica is one controller.
type replica struct {
	p    *plane
	name string
	port int
	cmd  *exec.Cmd
	log  *os.File
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	here := netlab.Here(t, "machine")
	here.Run("ip link set lo up")
	here.Run("ip link add under0 type bridge")
	here.Run("ip addr add " + planeAddress + "/24 dev under0")
	here.Run("ip link set under0 up")
	// As on any node of a cluster: in a container the setting cannot be written.
	allowForwarding(here)
	here.Run("ip route add default via 192.168.101.254")
	dir, err := os.MkdirTemp("", "nke2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &plane{bed: &bed{t: t, underlay: here, consul: consultest.Start(t, here, true)}, dir: dir, policies: map[string]string{}, tokens: map[string]string{}}
	p.registry = registry.New(p.consul.Client, controlled)
	p.settings = fabric.Settings{ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
	p.settings.Complete()
	p.setUp()
	p.up()
	return p
}

// setUp writes the fabric's settings, and the policies and tokens that there were.
func (p *plane) setUp() {
	p.t.Helper()
	if err := p.registry.SetSettings(p.t.Context(), p.settings); err != nil {
		p.t.Fatal(err)
	}
	for name := range p.policies {
		p.grant(name)
	}
}

func (p *plane) up() {
	t := p.t
	p.c, p.kube = cluster(t, devcluster.Options{
		Dir: p.dir, NoDocker: true, NoNomadKubelet: true, SplitNomad: true, ACL: true,
		// A client that is gone is down after seconds, and one whose allocations wait for
		// it is disconnected before that.
		ExtraNomadHCL: fmt.Sprintf(`server {
  heartbeat_grace   = "1s"
  min_heartbeat_ttl = "2s"
}
client {
  network_interface = "under0"
  cni_config_dir    = %q
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
`, p.cniConfig()),
	})
	var err error
	if p.nomad, err = p.c.NomadClient(); err != nil {
		t.Fatal(err)
	}
}

func (p *plane) cniConfig() string { return filepath.Join(p.dir, "cni") }

// consulToken is a file with a token of a policy of deploy's; change may be nil.
func (p *plane) consulToken(name, policy string, change func(string) string) string {
	p.t.Helper()
	rules, err := os.ReadFile(filepath.Join("../../deploy/consul", policy))
	if err != nil {
		p.t.Fatal(err)
	}
	p.policies[name], p.tokens[name] = string(rules), string(uuid.NewUUID())
	if change != nil {
		p.policies[name] = change(p.policies[name])
	}
	p.grant(name)
	return p.file(name+".consul-token", p.tokens[name])
}

func (p *plane) grant(name string) {
	p.t.Helper()
	acl := p.consul.Client.ACL()
	policy, _, err := acl.PolicyCreate(&consulapi.ACLPolicy{Name: name, Rules: p.policies[name]}, nil)
	if err == nil {
		_, _, err = acl.TokenCreate(&consulapi.ACLToken{SecretID: p.tokens[name], Policies: []*consulapi.ACLLink{{ID: policy.ID}}}, nil)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// nomadToken is a token of a policy of deploy's.
func (p *plane) nomadToken(name, policy string) string {
	p.t.Helper()
	rules, err := os.ReadFile(filepath.Join("../../deploy/nomad", policy))
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.nomad.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: name, Rules: string(rules)}, nil); err != nil {
		p.t.Fatal(err)
	}
	token, _, err := p.nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: name, Type: "client", Policies: []string{name}}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return token.SecretID
}

func (p *plane) file(name, text string) string {
	p.t.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// kubeconfig is of a service account of kube-system's, by a token.
func (p *plane) kubeconfig(account string) string {
	p.t.Helper()
	token, err := p.kube.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(p.t.Context(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))},
	}, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	rest, err := p.c.RESTConfig()
	if err != nil {
		p.t.Fatal(err)
	}
	kc := clientcmdapi.NewConfig()
	kc.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: filepath.Join(p.dir, "pki", "ca.crt")}
	kc.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	kc.Contexts["d"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	kc.CurrentContext = "d"
	file := filepath.Join(p.dir, account+".kubeconfig")
	if err := clientcmd.WriteToFile(*kc, file); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// node is the agent of the Kubernetes node of that name, with its deployed rights,
// the capabilities of the DaemonSet among them.
func (p *plane) node(name string) *host {
	p.t.Helper()
	token := p.consulToken(name, "netbridge-agent.hcl", func(rules string) string {
		return strings.NewReplacer("/nodes/nomad/", "/nodes/k8s/", "/seen/nomad/", "/seen/k8s/").Replace(rules)
	})
	account := p.kubeconfig("netbridge-agent")
	h := p.machine(p.underlay, fabric.ID("k8s/"+name), netip.MustParseAddr(planeAddress), func(c map[string]any) {
		c["fabric"] = controlled
		c["node"] = map[string]any{"kind": "k8s", "name": name, "endpoint": planeAddress}
		c["kubernetes"] = map[string]any{"kubeconfig": account}
		c["consul"] = map[string]any{"address": planeAddress + ":8500", "tokenFile": token}
		c["metricsAddress"] = "none"
	})
	h.as = []string{"setpriv", "--bounding-set=" + caps(p.t), "--inh-caps=" + caps(p.t), "--no-new-privs"}
	return h
}

// caps are what the DaemonSet's container has, in setpriv's words.
func caps(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var set appsv1.DaemonSet
		if err := yaml.Unmarshal([]byte(doc), &set); err != nil || set.Kind != "DaemonSet" {
			continue
		}
		c := set.Spec.Template.Spec.Containers[0].SecurityContext
		if !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) || *c.AllowPrivilegeEscalation {
			t.Error("the agent's container has more capabilities than it names")
		}
		words := "-all"
		for _, name := range c.Capabilities.Add {
			words += ",+" + strings.ToLower(string(name))
		}
		return words
	}
	t.Fatal("there is no DaemonSet")
	return ""
}

// controllers starts two replicas.
func (p *plane) controllers() {
	p.t.Helper()
	account := p.kubeconfig("netbridge-controller")
	token := p.consulToken("controller", "netbridge-controller.hcl", nil)
	nomad := p.file("controller.nomad-token", p.nomadToken("netbridge-controller", "netbridge-controller.hcl"))
	for i, name := range []string{"one", "two"} {
		r := &replica{p: p, name: name, port: p.c.Ports.Kubelet + 3 + i}
		config := fmt.Sprintf(`fabric: %s
consul: {address: %q, tokenFile: %q}
nomad: {address: %q, tokenFile: %q}
kubernetes: {kubeconfig: %q}
leaderElection: {leaseDuration: 4s}
collect: {after: %s, interval: 500ms}
hold: %s
address: "127.0.0.1:%d"
logLevel: debug
`, controlled, p.consul.Address, token, p.c.NomadAddress(), nomad, account, collectAfter, planeHold, r.port)
		p.file(name+".yaml", config)
		var err error
		if r.log, err = os.Create(filepath.Join(p.dir, name+".log")); err != nil {
			p.t.Fatal(err)
		}
		p.t.Cleanup(func() {
			r.kill()
			if p.t.Failed() {
				out, _ := os.ReadFile(r.log.Name())
				lines := strings.Split(string(out), "\n")
				p.t.Logf("controller %s:\n%s", r.name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
			}
			_ = r.log.Close()
		})
		p.replicas = append(p.replicas, r)
		r.start()
	}
	eventually(p.t, "ready controllers", 30*time.Second, func() bool {
		return !slices.ContainsFunc(p.replicas, func(r *replica) bool { return !r.ready() })
	})
}

func (r *replica) start() {
	r.p.t.Helper()
	r.cmd = exec.Command(program, "controller", "--config", filepath.Join(r.p.dir, r.name+".yaml"))
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	if err := r.p.underlay.Start(r.cmd); err != nil {
		r.p.t.Fatal(err)
	}
}

// kill is a SIGKILL: the Lease is not given back.
func (r *replica) kill() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

func (r *replica) get(path string) (int, []byte) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", r.port, path))
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	_, _ = body.ReadFrom(resp.Body)
	return resp.StatusCode, body.Bytes()
}

func (r *replica) ready() bool {
	code, _ := r.get("/readyz")
	return code == http.StatusOK
}

// metric is what a line of the metrics says, such as netbridge_controller_leads.
func (r *replica) metric(name string) float64 {
	_, body := r.get("/metrics")
	for s := bufio.NewScanner(bytes.NewReader(body)); s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			v, _ := strconv.ParseFloat(text, 64)
			return v
		}
	}
	return -1
}

// leader is the replica that acts; nil if none or several say that they do.
func (p *plane) leader() *replica {
	var lead []*replica
	for _, r := range p.replicas {
		if r.metric("netbridge_controller_leads") == 1 {
			lead = append(lead, r)
		}
	}
	if len(lead) != 1 {
		return nil
	}
	return lead[0]
}

// metric is the leader's; -1 while there is none.
func (p *plane) metric(name string) float64 {
	if r := p.leader(); r != nil {
		return r.metric(name)
	}
	return -1
}

func (p *plane) kubectl(args ...string) string {
	p.t.Helper()
	return kubectl(p.t, p.c, args...)
}

// record says whether a node has one.
func (p *plane) record(id fabric.ID) bool {
	p.t.Helper()
	all, err := p.registry.Records(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	_, ok := all[id]
	return ok
}

// logged says that a controller has written the text.
func (p *plane) logged(text string) bool {
	return slices.ContainsFunc(p.replicas, func(r *replica) bool {
		log, _ := os.ReadFile(r.log.Name())
		return bytes.Contains(log, []byte(text))
	})
}

// processesOf are those whose command line has the text.
func processesOf(text string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		line, err := os.ReadFile(file)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func killAll(pids []int) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// status is that of an agent at a socket.
func statusAt(socket string) (agent.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return agent.Ask(ctx, socket)
}
