package netbridge

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/export"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/registry"
)

const (
	manifest   = "../../deploy/kubernetes/netbridge/netbridge.yaml"
	agentJob   = "../../deploy/nomad/netbridge.nomad.hcl"
	workerName = "worker-1"
)

// The deployed files on a real API server, Nomad and Consul: what they give is what
// agent and controllers need, and these do what docs/networking.md says.
func TestController(t *testing.T) {
	needs(t)
	netlab.Root(t, "nomad", "kube-apiserver", "nomad-kubelet", "kubectl", "unshare", "setpriv")
	if os.Getenv(machineEnv) == "" {
		inOwnNamespace(t)
		return
	}
	p := newPlane(t)
	p.deploy()
	worker, former := p.agentOfANode()
	p.controllers()
	p.exports()
	p.imports()
	p.importsByNamespace()
	p.leaderKilled()
	p.apiServerAgain(worker)
	p.consulAgain()
	p.consulCut()
	p.consulWiped()
	p.massDelete()
	if p.record(former) {
		t.Error("the record of a Node that was made anew is still there")
	}
	client := p.agentOfAClient()
	p.collects(client)
}

// deploy has the API server and Nomad look at the files, and applies the first.
func (p *plane) deploy() {
	p.kubectl("apply", "--dry-run=server", "-f", manifest)
	out, err := exec.CommandContext(p.t.Context(), "nomad", "job", "validate", "-address", p.c.NomadAddress(), "-token", p.managementToken(), agentJob).CombinedOutput()
	if err != nil || strings.Contains(string(out), "Warning") {
		p.t.Errorf("%s: %v\n%s", agentJob, err, out)
	}
	p.kubectl("apply", "-f", manifest)
}

func (p *plane) managementToken() string {
	p.t.Helper()
	token, err := os.ReadFile(p.c.ManagementTokenFile())
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(token))
}

func (p *plane) newNode(ranges ...string) *corev1.Node {
	p.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: workerName}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
	if len(ranges) > 0 {
		n.Spec.PodCIDR = ranges[0]
	}
	n, err := p.kube.CoreV1().Nodes().Create(p.t.Context(), n, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// agentOfANode knows its name alone, and follows its Node.
func (p *plane) agentOfANode() (worker *host, former fabric.ID) {
	t := p.t
	node := p.newNode()
	worker = p.node(workerName)
	worker.start()
	worker.until("a Node without ranges", func(st agent.Status) bool {
		return strings.Contains(st.Problems["claim"], "no IPv4 range in spec.podCIDRs")
	})
	patch := []byte(`{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:1::/64"]}}`)
	if _, err := p.kube.CoreV1().Nodes().Patch(t.Context(), workerName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	st := worker.until("its ranges", func(st agent.Status) bool {
		return slices.Equal(st.Own.CIDRs, want) && len(st.Problems) == 0 && len(st.Drift) == 0
	})
	if st.ID != fabric.ID("k8s/"+node.UID) {
		t.Errorf("the agent is %s, the Node %s", st.ID, node.UID)
	}
	records, err := p.registry.Records(t.Context())
	if err != nil || time.Since(records[st.ID].Seen) > time.Minute {
		t.Errorf("%v %v", records, err)
	}

	// Without the API server it starts from its file.
	if err := p.c.Kill(t.Context(), devcluster.APIServer); err != nil {
		t.Fatal(err)
	}
	worker.kill()
	worker.start()
	worker.until("its ranges without the API server", func(st agent.Status) bool {
		return st.ID == fabric.ID("k8s/"+node.UID) && slices.Equal(st.Own.CIDRs, want) && len(st.Problems) == 0
	})
	if err := p.c.Start(t.Context(), devcluster.APIServer); err != nil {
		t.Fatal(err)
	}

	// Another Node of that name is another node.
	if err := p.kube.CoreV1().Nodes().Delete(t.Context(), workerName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	again := p.newNode("10.244.2.0/24")
	if err := worker.ended(30 * time.Second); err == nil {
		t.Error("the agent ends without an error when its Node is made anew")
	}
	if log, _ := os.ReadFile(worker.log.Name()); !bytes.Contains(log, []byte("the Node was deleted and made again")) {
		t.Error("the agent does not say why it ends")
	}
	worker.start()
	worker.until("the new Node's ranges", func(st agent.Status) bool {
		return st.ID == fabric.ID("k8s/"+again.UID) && slices.Equal(st.Own.CIDRs, []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}) && len(st.Problems) == 0
	})
	return worker, st.ID
}

// ended waits for the agent's end.
func (h *host) ended(limit time.Duration) error {
	h.bed.t.Helper()
	done := make(chan error, 1)
	cmd := h.cmd
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		h.cmd = nil
		return err
	case <-time.After(limit):
		h.bed.t.Fatalf("the agent of %s still runs after %s", h.id, limit)
		return nil
	}
}

func (p *plane) service(name string, a map[string]string, spec corev1.ServiceSpec) *corev1.Service {
	p.t.Helper()
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: a}, Spec: spec}
	svc, err := p.kube.CoreV1().Services("default").Create(p.t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		p.t.Fatal(err)
	}
	return svc
}

// annotate sets one annotation; empty takes it away.
func (p *plane) annotate(kind, name, key, value string) {
	p.t.Helper()
	arg := key + "=" + value
	if value == "" {
		arg = key + "-"
	}
	p.kubectl("annotate", "--overwrite", kind, name, arg)
}

// backs gives a Service the endpoints, "!" in front of those that are not ready.
func (p *plane) backs(name string, ports []corev1.ServicePort, addrs ...string) {
	p.t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, port := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &port.Name, Port: &port.TargetPort.IntVal, Protocol: &port.Protocol})
	}
	for _, a := range addrs {
		a, away := strings.CutPrefix(a, "!")
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: new(!away)}})
	}
	api := p.kube.DiscoveryV1().EndpointSlices("default")
	_, err := api.Update(p.t.Context(), slice, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(p.t.Context(), slice, metav1.CreateOptions{})
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func port(name string, number, target int32) corev1.ServicePort {
	p := corev1.ServicePort{Name: name, Port: number, Protocol: corev1.ProtocolTCP}
	p.TargetPort.IntVal = target
	return p
}

// catalog are a service's instances in Consul, as address:port.
func (p *plane) catalog(service string) (at []string) {
	p.t.Helper()
	list, _, err := p.consul.Client.Catalog().Service(service, "", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range list {
		at = append(at, fmt.Sprintf("%s:%d", s.ServiceAddress, s.ServicePort))
	}
	slices.Sort(at)
	return at
}

func (p *plane) exported(service string, want ...string) {
	p.t.Helper()
	var got []string
	eventually(p.t, fmt.Sprintf("%s in Consul at %v", service, want), 20*time.Second, func() bool {
		got = p.catalog(service)
		return slices.Equal(got, want)
	})
}

// told waits for an Event with the text.
func (p *plane) told(ns, reason, text string) {
	p.t.Helper()
	eventually(p.t, reason+" with "+text, 15*time.Second, func() bool {
		list, err := p.kube.CoreV1().Events(ns).List(p.t.Context(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Reason == reason && strings.Contains(e.Message, text) })
	})
}

func (p *plane) exports() {
	t := p.t
	http := []corev1.ServicePort{port("", 80, 8080)}
	yes := map[string]string{annotations.Export: "true"}
	p.service("web", yes, corev1.ServiceSpec{Ports: http})
	began := time.Now()
	p.backs("web", http, "10.244.1.5", "10.244.1.6", "!10.244.1.7")
	p.exported("web", "10.244.1.5:8080", "10.244.1.6:8080")
	t.Logf("endpoints are in Consul %s after they were made", time.Since(began).Round(time.Millisecond))
	list, _, err := p.consul.Client.Health().Service("web", "", true, nil)
	if err != nil || len(list) != 2 {
		t.Fatalf("plain workloads see %d healthy instances: %v", len(list), err)
	}
	if m := list[0].Service.Meta; list[0].Node.Node != "k8s-default" || m[export.MetaSource] != "kubernetes" || m[export.MetaFabric] != controlled ||
		m[export.MetaNamespace] != "default" || m[export.MetaCluster] == "" || m[export.MetaService] != "web" {
		t.Errorf("%+v of %+v", m, list[0].Node)
	}
	p.backs("web", http, "10.244.1.6", "10.244.1.7")
	p.exported("web", "10.244.1.6:8080", "10.244.1.7:8080")

	// What others register on the same node of the catalog stays.
	p.register("k8s-default", "127.0.0.1", &consulapi.AgentService{ID: "foreign", Service: "foreign", Port: 1}, "")

	// So does what another cluster of the fabric has exported, from a Service of that name.
	theirs := map[string]string{export.MetaSource: export.Source, export.MetaFabric: controlled, export.MetaCluster: "another", export.MetaNamespace: "default", export.MetaService: "web"}
	p.register("k8s-default", "127.0.0.1", &consulapi.AgentService{ID: "default/web/10.245.1.5:8080", Service: "theirs", Address: "10.245.1.5", Port: 8080, Meta: theirs}, "")

	two := []corev1.ServicePort{port("http", 80, 8080), port("admin", 81, 8081)}
	p.service("two", yes, corev1.ServiceSpec{Ports: two, ClusterIP: corev1.ClusterIPNone})
	p.backs("two", two, "10.244.1.8")
	p.told("default", "ConsulExport", annotations.Port+"]: the Service has several ports and Consul takes one: name one of http, admin")
	p.annotate("service", "two", annotations.Service, "console")
	p.annotate("service", "two", annotations.Port, "admin")
	p.exported("console", "10.244.1.8:8081")
	p.annotate("service", "two", annotations.Service, "front")
	p.exported("front", "10.244.1.8:8081")
	p.exported("console")
	p.service("away", yes, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"})
	p.told("default", "ConsulExport", "spec.type: a Service of type ExternalName")

	// A namespace asks for all, a Service not.
	p.service("quiet", map[string]string{annotations.Export: "false"}, corev1.ServiceSpec{Ports: http})
	p.service("other", nil, corev1.ServiceSpec{Ports: http})
	p.backs("quiet", http, "10.244.1.9")
	p.backs("other", http, "10.244.1.10")
	p.annotate("namespace", "default", annotations.Export, "true")
	p.exported("other", "10.244.1.10:8080")
	p.annotate("namespace", "default", annotations.Export, "")
	p.exported("other")
	if got := p.catalog("quiet"); len(got) > 0 {
		t.Errorf("a Service that says no is in Consul at %v", got)
	}

	// One that is deleted goes, and takes its slices' instances with it.
	p.kubectl("delete", "service", "two")
	p.exported("front")
	for _, name := range []string{"foreign", "theirs"} {
		if got := p.catalog(name); len(got) != 1 {
			t.Errorf("what others have registered as %s is at %v", name, got)
		}
	}
	if n := p.metric("netbridge_controller_exported_instances"); n != 2 {
		t.Errorf("metrics tell of %v exported instances", n)
	}
}

// register has an instance in Consul's catalog, with a check of that status if any.
func (p *plane) register(node, address string, s *consulapi.AgentService, status string) {
	p.t.Helper()
	reg := &consulapi.CatalogRegistration{Node: node, Address: address, Service: s, SkipNodeUpdate: true}
	if status != "" {
		reg.Check = &consulapi.AgentCheck{Node: node, CheckID: "service:" + s.ID, Name: "alive", Status: status, ServiceID: s.ID}
	}
	if _, err := p.consul.Client.Catalog().Register(reg, nil); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) deregister(node, id string) {
	p.t.Helper()
	if _, err := p.consul.Client.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: node, ServiceID: id}, nil); err != nil {
		p.t.Fatal(err)
	}
}

// db has instances of Consul's service db on a plain node, by status.
func (p *plane) db(number int, status string) {
	p.t.Helper()
	id := fmt.Sprint("db-", number)
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: id, Service: "db", Address: fmt.Sprint("192.0.2.", number), Port: 5000 + number%2, Tags: []string{"t" + fmt.Sprint(number%2)}}, status)
}

// endpoints are a Service's, as address:port, of the slices that the controller
// manages.
func (p *plane) endpoints(ns, name string) (at []string) {
	p.t.Helper()
	list, err := p.kube.DiscoveryV1().EndpointSlices(ns).List(p.t.Context(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + name + "," + discoveryv1.LabelManagedBy + "=" + annotations.Manager,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			at = append(at, fmt.Sprintf("%s:%d", e.Addresses[0], *s.Ports[0].Port))
		}
	}
	slices.Sort(at)
	return at
}

func (p *plane) imported(ns, name string, want ...string) {
	p.t.Helper()
	var got []string
	eventually(p.t, fmt.Sprintf("%s/%s at %v", ns, name, want), 20*time.Second, func() bool {
		got = p.endpoints(ns, name)
		return slices.Equal(got, want)
	})
}

func (p *plane) imports() {
	p.db(1, consulapi.HealthPassing)
	p.db(2, consulapi.HealthPassing)
	p.db(3, consulapi.HealthCritical)
	sql := []corev1.ServicePort{port("sql", 5432, 0)}
	db := p.service("db", map[string]string{annotations.Import: "db"}, corev1.ServiceSpec{Ports: sql})
	p.imported("default", "db", "192.0.2.1:5001", "192.0.2.2:5000")
	began := time.Now()
	p.db(3, consulapi.HealthPassing)
	p.imported("default", "db", "192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001")
	p.t.Logf("an instance that is well is an endpoint after %s", time.Since(began).Round(time.Millisecond))
	list, err := p.kube.DiscoveryV1().EndpointSlices("default").List(p.t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=db"})
	if err != nil || len(list.Items) != 2 || *list.Items[0].Ports[0].Name != "sql" || list.Items[0].OwnerReferences[0].UID != db.UID {
		p.t.Errorf("%+v %v", list.Items, err)
	}
	p.annotate("service", "db", annotations.Tag, "t0")
	p.imported("default", "db", "192.0.2.2:5000")
	p.annotate("service", "db", annotations.Tag, "")
	// All ill is Consul's word, and none.
	for _, n := range []int{1, 2, 3} {
		p.db(n, consulapi.HealthCritical)
	}
	p.imported("default", "db")
	for _, n := range []int{1, 2, 3} {
		p.db(n, consulapi.HealthPassing)
	}
	p.imported("default", "db", "192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001")

	// What the fabric has exported itself, beside an instance of somebody else's.
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "web-plain", Service: "web", Port: 8000}, consulapi.HealthPassing)
	p.service("mixed", map[string]string{annotations.Import: "web"}, corev1.ServiceSpec{Ports: sql})
	p.imported("default", "mixed", "192.0.2.10:8000")
	p.kubectl("delete", "service", "mixed")
	p.imported("default", "mixed") // by the owner reference
	p.deregister("plain", "web-plain")

	p.service("chosen", map[string]string{annotations.Import: "db"}, corev1.ServiceSpec{Ports: sql, Selector: map[string]string{"a": "b"}})
	p.told("default", "ConsulImport", "spec.selector: it chooses the endpoints")
	p.service("unclear", map[string]string{annotations.Import: "db", annotations.Port: "http"}, corev1.ServiceSpec{Ports: sql})
	p.told("default", "ConsulImport", annotations.Port+`]: the Service has no port "http": name one of sql`)
	p.annotate("service", "unclear", annotations.Port, "sql")
	p.imported("default", "unclear", "192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001")
	p.annotate("service", "unclear", annotations.Import, "")
	p.imported("default", "unclear")
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "odd", Service: "odd", Address: "host.example", Port: 1}, "")
	p.service("odd", map[string]string{annotations.Import: "odd"}, corev1.ServiceSpec{Ports: sql})
	p.told("default", "ConsulImport", "cannot be endpoints: host.example:1")
	p.kubectl("delete", "service", "chosen", "unclear", "odd")
	p.deregister("plain", "odd")
}

func (p *plane) madeIn(ns string) (names []string) {
	p.t.Helper()
	list, err := p.kube.CoreV1().Services(ns).List(p.t.Context(), metav1.ListOptions{LabelSelector: annotations.MadeFor + "=" + annotations.Manager})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range list.Items {
		names = append(names, fmt.Sprintf("%s:%d", s.Name, s.Spec.Ports[0].Port))
	}
	slices.Sort(names)
	return names
}

func (p *plane) made(ns string, want ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("Services %v made in %s", want, ns), 20*time.Second, func() bool { return slices.Equal(p.madeIn(ns), want) })
}

func (p *plane) importsByNamespace() {
	const ns = "burst"
	p.kubectl("create", "namespace", ns)
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "cache", Service: "cache", Port: 6379}, "")
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "my_db", Service: "my_db", Port: 1}, "")
	p.annotate("namespace", ns, annotations.Import, "db, cache,later,my_db")
	p.made(ns, "cache:6379", "db:80")
	p.imported(ns, "cache", "192.0.2.10:6379")
	p.imported(ns, "db", "192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001")
	p.told("default", "ConsulImport", `no Service can be called "my_db"`)
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "later", Service: "later", Port: 7000}, "")
	p.made(ns, "cache:6379", "db:80", "later:7000")
	// One that Consul has no more goes.
	p.deregister("plain", "later")
	p.made(ns, "cache:6379", "db:80")
	p.annotate("namespace", ns, annotations.Import, "cache")
	p.made(ns, "cache:6379")
	p.imported(ns, "db")

	// All there is, without Consul's own, what others have called so already, and what
	// was exported from here.
	p.kubectl("-n", ns, "create", "service", "clusterip", "later", "--tcp=1")
	p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: "later", Service: "later", Port: 7000}, "")
	p.annotate("namespace", ns, annotations.Import, annotations.All)
	p.made(ns, "cache:6379", "db:80", "foreign:1")
	p.told("default", "ConsulImport", "there is a Service later already")
	p.annotate("namespace", ns, annotations.Import, "")
	p.made(ns)
	p.deregister("plain", "later")
	p.deregister("plain", "my_db")
	p.deregister("k8s-default", "foreign")
}

var http8080 = []corev1.ServicePort{port("", 80, 8080)}

// follows makes sure that both ways go on.
func (p *plane) follows(n int) {
	p.t.Helper()
	addr := fmt.Sprint("10.244.9.", n)
	p.backs("web", http8080, addr)
	p.exported("web", addr+":8080")
	p.db(100+n, consulapi.HealthPassing)
	want := []string{"192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001", fmt.Sprintf("192.0.2.%d:%d", 100+n, 5000+n%2)}
	slices.Sort(want)
	p.imported("default", "db", want...)
	p.deregister("plain", fmt.Sprint("db-", 100+n))
	p.imported("default", "db", "192.0.2.1:5001", "192.0.2.2:5000", "192.0.2.3:5001")
}

// leaderKilled is a leader that does not give back the Lease.
func (p *plane) leaderKilled() {
	first := p.leader()
	if first == nil {
		p.t.Fatal("there is no leader")
	}
	first.kill()
	began := time.Now()
	p.follows(1)
	p.t.Logf("the other replica has done the killed leader's work after %s", time.Since(began).Round(time.Millisecond))
	if now := p.leader(); now == nil || now == first {
		p.t.Errorf("leads: %v", now)
	}
	first.start()
	eventually(p.t, "replica that stands by", 20*time.Second, first.ready)
}

func (p *plane) apiServerAgain(worker *host) {
	if err := p.c.Kill(p.t.Context(), devcluster.APIServer); err != nil {
		p.t.Fatal(err)
	}
	// Longer than the Lease: both have lost it.
	eventually(p.t, "end of the leader's term", 20*time.Second, func() bool {
		return !slices.ContainsFunc(p.replicas, func(r *replica) bool { return r.metric("netbridge_controller_leads") != 0 })
	})
	if got := p.catalog("web"); len(got) != 1 {
		p.t.Errorf("without the API server web is in Consul at %v", got)
	}
	if err := p.c.Start(p.t.Context(), devcluster.APIServer); err != nil {
		p.t.Fatal(err)
	}
	p.follows(2)
	if st, err := worker.status(); err != nil || len(st.Problems) > 0 {
		p.t.Errorf("%+v %v", st, err)
	}
}

func (p *plane) consulAgain() {
	before := p.endpoints("default", "db")
	p.consul.Stop()
	p.backs("web", http8080, "10.244.9.77") // what changes meanwhile is not forgotten
	if got := p.endpoints("default", "db"); !slices.Equal(got, before) {
		p.t.Errorf("without Consul the endpoints are %v", got)
	}
	p.consul.Up()
	p.exported("web", "10.244.9.77:8080")
	p.follows(3)
}

// consulCut takes rights away: what is hidden is not gone.
func (p *plane) consulCut() {
	t := p.t
	policy, _, err := p.consul.Client.ACL().PolicyReadByName("controller", nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(rules string) {
		t.Helper()
		policy.Rules = rules
		if _, _, err := p.consul.Client.ACL().PolicyUpdate(policy, nil); err != nil {
			t.Fatal(err)
		}
	}
	before := p.endpoints("default", "db")
	write(strings.Replace(p.policies["controller"], `service_prefix ""`, `service_prefix "web"`, 1))
	// A query that waits has the rights of its beginning, and what is hidden does not
	// wake it: the next one begins within a minute (package follow).
	eventually(t, "doubt", 80*time.Second, func() bool { return p.logged("the token may not read all of the answer") })
	p.db(2, consulapi.HealthCritical)
	if got := p.endpoints("default", "db"); !slices.Equal(got, before) {
		t.Errorf("with rights that hide the service the endpoints are %v", got)
	}
	write(p.policies["controller"])
	p.imported("default", "db", "192.0.2.1:5001", "192.0.2.3:5001")
	p.db(2, consulapi.HealthPassing)
	p.imported("default", "db", before...)
}

// consulWiped has Consul come back without any record, service or token.
func (p *plane) consulWiped() {
	t := p.t
	before := p.endpoints("default", "db")
	p.consul.Wipe()
	for name := range p.policies {
		p.grant(name)
	}
	// What was exported comes back by itself.
	p.exported("web", "10.244.9.3:8080")
	// What was imported is not known to Consul, which says that it was emptied.
	eventually(t, "doubt", 20*time.Second, func() bool { return p.logged("Consul may have lost what it had") })
	if got := p.endpoints("default", "db"); !slices.Equal(got, before) {
		t.Errorf("of an emptied Consul the endpoints are %v", got)
	}
	if err := p.registry.SetSettings(t.Context(), p.settings); err != nil {
		t.Fatal(err)
	}
	eventually(t, "hold", 20*time.Second, func() bool { return p.metric(`netbridge_controller_held{room="import"}`) == 1 })
	if got := p.endpoints("default", "db"); !slices.Equal(got, before) {
		t.Errorf("while they are held the endpoints are %v", got)
	}
	for _, n := range []int{1, 2, 3} {
		p.db(n, consulapi.HealthPassing)
	}
	eventually(t, "end of the hold", 20*time.Second, func() bool { return p.metric(`netbridge_controller_held{room="import"}`) == 0 })
	p.follows(4)
}

// massDelete is most of what there is, at once, on either side.
func (p *plane) massDelete() {
	t := p.t
	names := []string{"web"}
	for _, name := range []string{"a", "b", "c"} {
		names = append(names, "mass-"+name)
		p.service("mass-"+name, map[string]string{annotations.Export: "true"}, corev1.ServiceSpec{Ports: http8080})
		p.backs("mass-"+name, http8080, "10.244.8.1")
		p.exported("mass-"+name, "10.244.8.1:8080")
	}
	began := time.Now()
	p.kubectl(append([]string{"delete", "service"}, names[1:]...)...)
	eventually(t, "hold", 10*time.Second, func() bool { return p.metric(`netbridge_controller_held{room="export"}`) == 3 })
	for _, name := range names {
		if got := p.catalog(name); len(got) != 1 {
			t.Errorf("while it is held %s is at %v", name, got)
		}
	}
	// One comes back in time and is not touched; the others go.
	p.service("mass-a", map[string]string{annotations.Export: "true"}, corev1.ServiceSpec{Ports: http8080})
	p.backs("mass-a", http8080, "10.244.8.1")
	p.exported("mass-b")
	p.exported("mass-c")
	if held := time.Since(began); held < planeHold {
		t.Errorf("they were held for %s only", held)
	}
	p.exported("mass-a", "10.244.8.1:8080")

	for _, name := range []string{"x", "y"} {
		p.register("plain", "192.0.2.10", &consulapi.AgentService{ID: name, Service: name, Port: 9000}, "")
		p.service(name, map[string]string{annotations.Import: name}, corev1.ServiceSpec{Ports: http8080})
		p.imported("default", name, "192.0.2.10:9000")
	}
	began = time.Now()
	if _, err := p.consul.Client.Catalog().Deregister(&consulapi.CatalogDeregistration{Node: "plain"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "hold", 10*time.Second, func() bool { return p.metric(`netbridge_controller_held{room="import"}`) == 3 })
	for _, name := range []string{"x", "y", "db"} {
		if len(p.endpoints("default", name)) == 0 {
			t.Errorf("while it is held %s has no endpoints", name)
		}
	}
	p.imported("default", "x")
	p.imported("default", "db")
	if held := time.Since(began); held < planeHold {
		t.Errorf("they were held for %s only", held)
	}
}

// agentOfAClient runs the deployed job on the Nomad client.
func (p *plane) agentOfAClient() fabric.ID {
	t := p.t
	agentToken := p.consulToken("nomad-agent", "netbridge-agent.hcl", nil)
	secret, err := os.ReadFile(agentToken)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = p.nomad.Variables().Create(&nomadapi.Variable{Path: "nomad/jobs/netbridge", Items: nomadapi.VariableItems{
		"consul_token": string(secret), "nomad_token": p.nomadToken("netbridge-agent", "netbridge-agent.hcl"),
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	bin, socket := filepath.Join(p.dir, "cni-bin"), filepath.Join(p.dir, "client.sock")
	args := []string{"job", "run", "-detach", "-address", p.c.NomadAddress(), "-token", p.managementToken()}
	for key, value := range map[string]string{
		"consul_address": "http://" + planeAddress + ":8500", "nomad_address": fmt.Sprintf("http://127.0.0.1:%d", p.c.Ports.NomadClientHTTP),
		"program_dir": filepath.Dir(program), "cni_bin_dir": bin, "cni_config_dir": p.cniConfig(), "state_dir": filepath.Join(p.dir, "client-state"), "socket": socket,
	} {
		args = append(args, "-var", key+"="+value)
	}
	// The worker's agent has this machine's device.
	for _, h := range p.hosts {
		h.kill()
	}
	if out, err := exec.CommandContext(t.Context(), "nomad", append(args, agentJob)...).CombinedOutput(); err != nil {
		t.Fatalf("nomad job run: %v\n%s", err, out)
	}
	var st agent.Status
	eventually(t, "agent of the deployed job", 40*time.Second, func() bool {
		st, err = statusAt(socket)
		return err == nil && len(st.Own.CIDRs) == 1 && st.Consul == ""
	})
	if _, err := os.Stat(filepath.Join(bin, "netbridge-ipam")); err != nil {
		t.Error(err)
	}
	eventually(t, "CNI network", 10*time.Second, func() bool {
		_, err := os.Stat(filepath.Join(p.cniConfig(), "netbridge.conflist"))
		return err == nil
	})
	if err := p.c.Signal(devcluster.NomadClient, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "client that is offered", 40*time.Second, func() bool {
		info, _, err := p.nomad.Nodes().Info(strings.TrimPrefix(string(st.ID), "nomad/"), nil)
		return err == nil && info.Meta[agent.MetaKey] == agent.MetaReady
	})
	return st.ID
}

// collects takes away who is gone, and nobody else.
func (p *plane) collects(client fabric.ID) {
	t := p.t
	n, err := p.kube.CoreV1().Nodes().Get(t.Context(), workerName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	self := fabric.ID("k8s/" + n.UID)
	// All are silent for longer than collect.after, but their machines are there.
	eventually(t, "silence", 20*time.Second, func() bool {
		all, err := p.registry.Records(t.Context())
		return err == nil && time.Since(all[client].Seen) > 2*collectAfter && time.Since(all[self].Seen) > 2*collectAfter
	})
	if !p.record(client) || !p.record(self) {
		t.Fatal("the record of a node that lives was taken away")
	}

	never := fabric.ID("nomad/never-seen")
	if _, err := p.registry.Claim(t.Context(), registry.Request{ID: never, Settings: p.settings, Blocks: 1, MTU: 1450, Endpoint: netip.MustParseAddr("192.0.2.9")}); err != nil {
		t.Fatal(err)
	}
	// Four that Nomad does not know are more than half.
	had := map[fabric.ID]fabric.Node{}
	var seen consulapi.KVTxnOps
	for n := range 4 {
		id := fabric.ID(fmt.Sprint("nomad/forgotten-", n))
		node, err := p.registry.Claim(t.Context(), registry.Request{ID: id, Settings: p.settings, Blocks: 1, MTU: 1450, Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)})})
		if err != nil {
			t.Fatal(err)
		}
		had[id] = node
		seen = append(seen, &consulapi.KVTxnOp{Verb: consulapi.KVSet, Key: "netbridge/v1/default/seen/" + string(id), Value: []byte(time.Now().Add(-time.Hour).Format(time.RFC3339Nano))})
	}
	began := time.Now()
	if ok, _, _, err := p.consul.Client.KV().Txn(seen, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for id := range had {
		eventually(t, "end of "+string(id), 40*time.Second, func() bool { return !p.record(id) })
	}
	if took := time.Since(began); took < planeHold {
		t.Errorf("half of the nodes went after %s", took)
	}
	if !p.record(never) {
		t.Error("a record whose agent never said that it lives was taken away")
	}
	// Who comes back has what it had.
	for id, node := range had {
		back, err := p.registry.Claim(t.Context(), registry.Request{ID: id, Settings: p.settings, Blocks: 1, MTU: 1450, Endpoint: node.Endpoint, Held: node.CIDRs, HeldHost: node.Host})
		if err != nil || !back.Equal(node) {
			t.Errorf("%s had %v, has %v (%v)", id, node, back, err)
		}
	}

	p.clientDown(client)

	// A Node that is deleted.
	if err := p.kube.CoreV1().Nodes().Delete(t.Context(), workerName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// Without Nodes the API server may be another one.
	eventually(t, "doubt", 20*time.Second, func() bool { return p.logged("the API server has no nodes at all") })
	if !p.record(self) {
		t.Error("a record was taken away because an API server has no nodes")
	}
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker-2"}}
	if _, err := p.kube.CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of "+string(self), 30*time.Second, func() bool { return !p.record(self) })
}

// clientDown is a client that is gone, for whose allocations Nomad waits first.
func (p *plane) clientDown(client fabric.ID) {
	t := p.t
	node := strings.TrimPrefix(string(client), "nomad/")
	j := job(t, "waits", 1, node)
	j.Constraints, j.TaskGroups[0].Networks = nil, nil
	j.TaskGroups[0].Disconnect = &nomadapi.DisconnectStrategy{LostAfter: new(12 * time.Second)}
	j.TaskGroups[0].Tasks[0].Config = map[string]any{"command": "/bin/sleep", "args": []string{"600"}}
	if _, _, err := p.nomad.Jobs().Register(j, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "running allocation", 30*time.Second, func() bool {
		list, _, err := p.nomad.Jobs().Allocations("waits", false, nil)
		return err == nil && len(list) == 1 && list[0].ClientStatus == "running"
	})
	if err := p.c.Kill(t.Context(), devcluster.NomadClient); err != nil {
		t.Fatal(err)
	}
	killAll(processesOf(program + " agent --config="))
	status := func() string {
		info, _, err := p.nomad.Nodes().Info(node, nil)
		if err != nil {
			return err.Error()
		}
		return info.Status
	}
	eventually(t, "client that is waited for", 30*time.Second, func() bool { return status() == nomadapi.NodeStatusDisconnected })
	last := ""
	eventually(t, "end of the client's record", 60*time.Second, func() bool {
		last = status()
		return !p.record(client)
	})
	if last == nomadapi.NodeStatusDisconnected || status() != nomadapi.NodeStatusDown {
		t.Errorf("its record went while Nomad said that it is %s", last)
	}
	if err := p.c.Start(t.Context(), devcluster.NomadClient); err != nil {
		t.Fatal(err)
	}
}
