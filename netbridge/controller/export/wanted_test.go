package export

import (
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
)

func endpoint(ready *bool, addr string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: ready}}
}

func TestInstances(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{annotations.Port: "http"}},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 81}}}}
	ports := []discoveryv1.EndpointPort{{Name: new("admin"), Port: new(int32(8081))}, {Name: new("http"), Port: new(int32(8080))}}
	got, err := instances("prod", "one", svc, []*discoveryv1.EndpointSlice{
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: []discoveryv1.Endpoint{
			endpoint(nil, "10.0.0.1"), endpoint(new(true), "10.0.0.2"), endpoint(new(false), "10.0.0.3"),
		}},
		// While slices are written anew an endpoint is in two.
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: []discoveryv1.Endpoint{endpoint(nil, "10.0.0.1")}},
		{AddressType: discoveryv1.AddressTypeIPv6, Ports: ports, Endpoints: []discoveryv1.Endpoint{endpoint(nil, "fd00::1")}},
		{AddressType: discoveryv1.AddressTypeIPv4, Ports: ports[:1], Endpoints: []discoveryv1.Endpoint{endpoint(nil, "10.0.0.4")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if ids := slices.Sorted(maps.Keys(got)); !slices.Equal(ids, []string{"shop/web/10.0.0.1:8080", "shop/web/10.0.0.2:8080"}) {
		t.Error(ids)
	}
	one := got["shop/web/10.0.0.1:8080"]
	if one.Service != "web" || one.Address != "10.0.0.1" || one.Port != 8080 || !From("prod", one.Meta) || From("other", one.Meta) || origin(one.Meta) != "shop/web" {
		t.Errorf("%+v", one)
	}
	if From("", map[string]string{}) {
		t.Error("what says nothing is ours")
	}
	svc.Annotations[annotations.Service] = "front"
	renamed, err := instances("prod", "one", svc, nil)
	if err != nil || len(renamed) != 0 {
		t.Error(renamed, err)
	}
	delete(svc.Annotations, annotations.Port)
	if _, err := instances("prod", "one", svc, nil); err == nil || !strings.Contains(err.Error(), "several ports") {
		t.Error(err)
	}
}

// A headless Service needs no port.
func TestInstancesWithoutPort(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "peers"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}}
	got, err := instances("prod", "one", svc, []*discoveryv1.EndpointSlice{{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{endpoint(nil, "10.0.0.1")}}})
	if err != nil || got["shop/peers/10.0.0.1:0"] == nil {
		t.Error(got, err)
	}
}
