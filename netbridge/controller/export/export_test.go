package export

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/loop"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/metrics"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/tell"
)

func indexer(t *testing.T, objs ...runtime.Object) cache.Indexer {
	t.Helper()
	i := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, o := range objs {
		if err := i.Add(o); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// A token may be narrowed to some names (deploy/consul/netbridge-controller.hcl): a
// Service that is not among them keeps nobody else's dead endpoint in the catalog.
func TestWhatCannotBeRegisteredKeepsNothing(t *testing.T) {
	var gone []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/register") && strings.Contains(string(body), `"forbidden"`):
			http.Error(w, "Permission denied: token lacks permission 'service:write'", http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/register"):
		case strings.HasSuffix(r.URL.Path, "/deregister"):
			var d api.CatalogDeregistration
			if err := json.Unmarshal(body, &d); err != nil {
				t.Error(err)
			}
			gone = append(gone, d.ServiceID)
		default:
			t.Error("asked for ", r.URL)
		}
	}))
	defer srv.Close()
	consul, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	service := func(name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{annotations.Export: "true"}},
			Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	}
	slice := func(name, addr string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(80))}},
			Endpoints: []discoveryv1.Endpoint{endpoint(new(true), addr)}}
	}
	kubeSystem := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: "one"}}
	e := &Exporter{
		Consul: consul, Fabric: "prod", Node: "k8s-prod", Log: hclog.NewNullLogger(), Bell: loop.NewBell(), Metrics: metrics.New(),
		Services:   corelisters.NewServiceLister(indexer(t, service("forbidden"), service("web"))),
		Namespaces: corelisters.NewNamespaceLister(indexer(t, kubeSystem)),
		Slices:     discoverylisters.NewEndpointSliceLister(indexer(t, slice("forbidden", "10.0.0.1"), slice("web", "10.0.0.2"))),
		Events:     &tell.Teller{Recorder: record.NewFakeRecorder(10), Reason: "ConsulExport"},
	}
	const dead = "shop/web/10.0.0.9:80"
	meta := map[string]string{MetaSource: Source, MetaFabric: "prod", MetaCluster: "one", MetaNamespace: "shop", MetaService: "web"}
	e.told(&api.CatalogNodeServiceList{Services: []*api.AgentService{{ID: dead, Service: "web", Address: "10.0.0.9", Port: 80, Meta: meta}}}, nil)
	_, err = e.pass(t.Context())
	if !slices.Equal(gone, []string{dead}) {
		t.Errorf("deregistered %v, want %s", gone, dead)
	}
	var status api.StatusError
	if !errors.As(err, &status) || status.Code != http.StatusForbidden || !strings.Contains(err.Error(), "shop/forbidden/10.0.0.1:80") {
		t.Errorf("what could not be registered is not told: %v", err)
	}
}
