package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	authzv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func testConfig(change func(*config.VirtualNode)) *config.Config {
	c := &config.Config{}
	c.Complete()
	if change != nil {
		change(&c.VirtualNodes[0])
	}
	return c
}

// find returns the check of that name.
func find(t *testing.T, r *report.Report, what string) report.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.What == what {
			return c
		}
	}
	t.Errorf("nothing was checked as %q", what)
	return report.Check{}
}

func expect(t *testing.T, r *report.Report, what string, res report.Result, in string) {
	t.Helper()
	c := find(t, r, what)
	text := c.Found + c.Breaks + c.Remedy
	if c.Result != res || !strings.Contains(text, in) {
		t.Errorf("%s: %+v, want %s with %q", what, c, res, in)
	}
	if res != report.OK && c.Remedy == "" {
		t.Errorf("%s: no remedy", what)
	}
}

// fakeNomad answers a path with a value, or with a status and a text.
func fakeNomad(t *testing.T, answers map[string]any) *api.Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok {
			a = []any{}
		}
		if e, ok := a.(fault); ok {
			http.Error(w, e.text, e.code)
			return
		}
		_ = json.NewEncoder(w).Encode(a)
	}))
	t.Cleanup(srv.Close)
	c, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type fault struct {
	code int
	text string
}

func healthyAnswers() map[string]any {
	return map[string]any{
		"/v1/status/leader":                    "10.0.0.1:4647",
		"/v1/regions":                          []string{"global"},
		"/v1/acl/token/self":                   fault{400, "ACL support disabled"},
		"/v1/namespace/default":                map[string]any{"Name": "default"},
		"/v1/node/pool/default":                map[string]any{"Name": "default"},
		"/v1/operator/scheduler/configuration": map[string]any{"SchedulerConfig": map[string]any{"MemoryOversubscriptionEnabled": true}},
		"/v1/job/nomad-kubelet-doctor/plan":    map[string]any{},
		"/v1/nodes":                            []any{map[string]any{"ID": "1", "Name": "c1", "NodePool": "default", "Datacenter": "dc1"}},
		"/v1/node/1":                           testClient(),
		"/v1/agent/self":                       map[string]any{"config": goodAgent()},
	}
}

func testClient() map[string]any {
	return map[string]any{
		"ID": "1", "Name": "c1", "NodePool": "default", "Status": "ready", "SchedulingEligibility": "eligible", "HTTPAddr": "127.0.0.1:1",
		"Drivers": map[string]any{"docker": map[string]any{"Detected": true, "Healthy": true}, "qemu": map[string]any{"Detected": true, "Healthy": true}},
		"Attributes": map[string]any{
			"driver.docker.volumes.enabled": "true", "plugins.cni.version.bridge": "1", "plugins.cni.version.firewall": "1",
			"plugins.cni.version.host-local": "1", "plugins.cni.version.loopback": "1", "plugins.cni.version.portmap": "1",
		},
		"NodeResources": map[string]any{"Cpu": map[string]any{"CpuShares": 4000, "TotalCpuCores": 4}},
	}
}

func goodAgent() map[string]any {
	return map[string]any{
		"Version": map[string]any{"Version": "1.11.3"},
		"Limits":  map[string]any{"HTTPMaxConnsPerClient": 0},
		"Server":  map[string]any{"Enabled": true, "EventBufferSize": 20000, "JobGCThreshold": "24h"},
	}
}

func run(t *testing.T, answers map[string]any, cfg *config.Config) *report.Report {
	t.Helper()
	d := &Doctor{Config: cfg, KubeErr: errors.New("no kubeconfig"), Nomad: fakeNomad(t, answers)}
	return d.Run(t.Context())
}

func TestNomadFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		path   string
		answer any
		what   string
		result report.Result
		in     string
	}{
		"no leader":        {"/v1/status/leader", fault{500, "No cluster leader"}, "leader", report.Fail, "raft list-peers"},
		"bad token":        {"/v1/acl/token/self", fault{403, "ACL token not found"}, "token", report.Fail, "nomad acl token create"},
		"no token at all":  {"/v1/acl/token/self", fault{500, "failed to parse signed token: x"}, "token", report.Fail, "NOMAD_TOKEN"},
		"ACLs off":         {"", nil, "token", report.Warn, "ACLs are off"},
		"denied jobs":      {"/v1/jobs", fault{403, "Permission denied"}, "list jobs (list-jobs)", report.Fail, "policy.hcl"},
		"denied plan":      {"/v1/job/nomad-kubelet-doctor/plan", fault{403, "Permission denied"}, "plan a job (submit-job)", report.Fail, "no pod starts"},
		"no namespace":     {"/v1/namespace/default", fault{404, "Namespace not found"}, "namespace", report.Fail, "nomad namespace apply default"},
		"no pool":          {"/v1/nodes", []any{}, "clients", report.Fail, `node_pool = "default"`},
		"no oversubscript": {"/v1/operator/scheduler/configuration", map[string]any{"SchedulerConfig": map[string]any{}}, "memory oversubscription", report.Warn, "-memory-oversubscription=true"},
		"agent denied":     {"/v1/agent/self", fault{403, "Permission denied"}, "server settings", report.Unknown, "nomad agent-info"},
		"client silent":    {"", nil, "agent settings", report.Unknown, "nomad_retry"},
	} {
		t.Run(name, func(t *testing.T) {
			a := healthyAnswers()
			if tc.path != "" {
				a[tc.path] = tc.answer
			}
			expect(t, run(t, a, testConfig(nil)), tc.what, tc.result, tc.in)
		})
	}
	t.Run("unknown pool", func(t *testing.T) {
		a := healthyAnswers()
		a["/v1/nodes"], a["/v1/node/pool/default"] = []any{}, fault{404, "node pool not found"}
		expect(t, run(t, a, testConfig(nil)), "node pool", report.Fail, "correct nodePool")
	})
	t.Run("unreachable", func(t *testing.T) {
		c, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
		r := (&Doctor{Config: testConfig(nil), Nomad: c}).Run(t.Context())
		expect(t, r, "reachable", report.Fail, "NOMAD_ADDR")
		if r.Err() == nil {
			t.Error("no error")
		}
	})
}

func TestClientFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(client map[string]any, attrs map[string]any)
		what   string
		result report.Result
		in     string
	}{
		"healthy":    {func(_, _ map[string]any) {}, "CNI plugins", report.OK, "portmap"},
		"no volumes": {func(_, a map[string]any) { delete(a, "driver.docker.volumes.enabled") }, "driver docker", report.Fail, "volumes { enabled = true }"},
		"no CNI":     {func(_, a map[string]any) { delete(a, "plugins.cni.version.portmap") }, "CNI plugins", report.Fail, "containernetworking-plugins"},
		"MHz": {func(c, _ map[string]any) {
			c["NodeResources"] = map[string]any{"Cpu": map[string]any{"CpuShares": 9000, "TotalCpuCores": 4}}
		}, "CPU scale", report.Warn, "cpu_total_compute = 4000"},
		"no proxy": {func(_, _ map[string]any) {}, "docker proxy", report.Warn, "companion docker-proxy"},
		"proxy":    {func(_, a map[string]any) { a["driver.docker.version"] = "20.10.24+nomad-kubelet" }, "docker proxy", report.OK, "20.10.24"},
		"no image": {func(_, _ map[string]any) {}, "companion image", report.Warn, "companionImage"},
		"no qemu":  {func(c, _ map[string]any) { delete(c["Drivers"].(map[string]any), "qemu") }, "driver qemu", report.Warn, "qemu-system-x86"},
		"draining": {func(c, _ map[string]any) { c["SchedulingEligibility"] = "ineligible" }, "clients", report.Fail, "eligibility -enable"},
	} {
		t.Run(name, func(t *testing.T) {
			a, c := healthyAnswers(), testClient()
			tc.change(c, c["Attributes"].(map[string]any))
			a["/v1/node/1"] = c
			expect(t, run(t, a, testConfig(nil)), tc.what, tc.result, tc.in)
		})
	}
}

func TestPodNetwork(t *testing.T) {
	config := testConfig(nil)
	config.VirtualNodes[0].Network = translate.NetworkNetbridge
	for mark, want := range map[string]report.Result{translate.NetbridgeReady: report.OK, "": report.Fail} {
		a, c := healthyAnswers(), testClient()
		c["Meta"] = map[string]any{translate.NetbridgeMeta: mark}
		delete(c["Attributes"].(map[string]any), "plugins.cni.version.portmap")
		a["/v1/node/1"] = c
		r := run(t, a, config)
		expect(t, r, "pod network", want, "ready")
		expect(t, r, "CNI plugins", report.OK, "bridge, loopback")
	}
}

func TestAgentSettings(t *testing.T) {
	parse := func(text string) *agentSelf {
		var a agentSelf
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
		return &a
	}
	bad := parse(`{"config":{"Limits":{"HTTPMaxConnsPerClient":100},"Client":{"MaxKillTimeout":"30s","GCMaxAllocs":50,"TemplateConfig":{"MaxStale":315360000000000000,"NomadRetry":{"Attempts":12}}},"Server":{"EventBufferSize":100,"JobGCThreshold":"4h"}}}`)
	good := parse(`{"config":{"Telemetry":{"PublishAllocationMetrics":true},"Limits":{"HTTPMaxConnsPerClient":0},"Client":{"MaxKillTimeout":"1h","GCMaxAllocs":1000,"TemplateConfig":{"MaxStale":0,"NomadRetry":{"Attempts":0}}},"Server":{"EventBufferSize":20000,"JobGCThreshold":"24h"}}}`)
	for _, s := range append(clientSettings, serverSettings...) {
		for a, want := range map[*agentSelf]report.Result{bad: s.result, good: report.OK, parse(`{}`): s.result} {
			r := &report.Report{}
			s.check(r, "x", a)
			if got := r.Checks[0].Result; got != want {
				t.Errorf("%s: %s, want %s", s.what, got, want)
			}
		}
	}
	r := &report.Report{}
	capabilities(r, "x", parse(`{"config":{"Plugins":[{"Name":"docker","Config":{"allow_caps":["chown"]}}]}}`), []string{"CAP_NET_ADMIN"})
	if c := r.Checks[0]; c.Result != report.Warn || !strings.Contains(c.Found, "net_admin") {
		t.Errorf("capabilities: %+v", c)
	}
}

// A row whose guests have their pods' addresses needs what its companions need.
func TestTapCapabilities(t *testing.T) {
	for _, tc := range []struct {
		network any
		want    report.Result
	}{{nil, report.OK}, {"user", report.OK}, {"tap", report.Warn}} {
		vn := testConfig(func(n *config.VirtualNode) {
			if tc.network != nil {
				n.Runtimes["nomad-vm"] = translate.Runtime{Driver: "qemu", Config: map[string]any{"network": tc.network}}
			}
		}).VirtualNodes[0]
		var a agentSelf
		allowed, _ := json.Marshal(dockerCaps)
		if err := json.Unmarshal(fmt.Appendf(nil, `{"config":{"Plugins":[{"Name":"docker","Config":{"allow_caps":%s}}]}}`, allowed), &a); err != nil {
			t.Fatal(err)
		}
		r := &report.Report{}
		capabilities(r, "x", &a, tapCapabilities(poolClient{vn: vn}))
		if c := r.Checks[0]; c.Result != tc.want || tc.want == report.Warn && c.Found != "missing: net_admin" {
			t.Errorf("network %v: %+v", tc.network, c)
		}
	}
}

func TestKubernetesFaults(t *testing.T) {
	kube := fake.NewClientset()
	kube.PrependReactor("create", "selfsubjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authzv1.SelfSubjectAccessReview).DeepCopy()
		at := r.Spec.ResourceAttributes
		r.Status.Allowed = at.Resource != "secrets" && !(at.Resource == "events" && at.Verb == "patch")
		return true, r, nil
	})
	r := &report.Report{}
	(&Doctor{Config: testConfig(nil), Kube: kube}).kubernetes(t.Context(), r)
	expect(t, r, "may get, list, watch secrets", report.Fail, "rbac.yaml")
	expect(t, r, "may create, patch events", report.Warn, "denied: patch")
	expect(t, r, "RuntimeClass nomad-vm", report.Warn, "runtimeclass.yaml")
	for server, want := range map[string]report.Result{"v1.35.1": report.OK, "v1.38.0": report.OK, "v1.34.0": report.Warn, "v1.39.0": report.Warn, "?": report.Unknown} {
		if c := skew("v1.35.4+x", server); c.Result != want {
			t.Errorf("API server %s: %s", server, c.Result)
		}
	}
}

// The rules that are checked are those that are installed.
func TestPermissionsAreThoseOfTheManifest(t *testing.T) {
	data, err := os.ReadFile("../../deploy/kubernetes/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	installed := map[string]bool{}
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var role struct {
			metav1.ObjectMeta `json:"metadata"`
			Rules             []rbacv1.PolicyRule `json:"rules"`
		}
		if err := yaml.Unmarshal(doc, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, res := range rule.Resources {
				for _, verb := range rule.Verbs {
					installed[fmt.Sprintf("%s %s %s %s %v", role.Namespace, rule.APIGroups[0], res, verb, rule.ResourceNames)] = true
				}
			}
		}
	}
	for _, p := range permissions {
		for _, verb := range p.verbs {
			res, names := p.resource, []string(nil)
			if p.sub != "" {
				res += "/" + p.sub
			}
			if p.name != "" {
				names = []string{p.name}
			}
			key := fmt.Sprintf("%s %s %s %s %v", p.namespace, p.group, res, verb, names)
			if !installed[key] {
				t.Errorf("checked but not installed: %s", key)
			}
			delete(installed, key)
		}
	}
	for key := range installed {
		t.Errorf("installed but not checked: %s", key)
	}
}

// Against a real Nomad with nothing set: the settings that endanger pods fail,
// and the report says what to write.
func TestLive(t *testing.T) {
	agent := nomadtest.Start(t, "")
	d := &Doctor{Config: testConfig(nil), KubeErr: errors.New("none"), Nomad: agent.Client}
	r := d.Run(t.Context())
	expect(t, r, "template nomad_retry attempts", report.Fail, "attempts = 0")
	expect(t, r, "template max_stale", report.Fail, `max_stale = "0s"`)
	expect(t, r, "gc_max_allocs", report.Warn, "1000")
	expect(t, r, "event_buffer_size", report.Warn, "20000")
	expect(t, r, "namespace", report.OK, "default")
	expect(t, r, "token", report.Warn, "ACLs are off")
	expect(t, r, "plan a job (submit-job)", report.OK, "")
	var text, js bytes.Buffer
	if err := errors.Join(r.WriteText(&text), r.WriteJSON(&js)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "nomad_retry") || !json.Valid(js.Bytes()) {
		t.Errorf("report:\n%s", text.String())
	}
}
