package imports

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/export"
)

func entry(address string, port int, status string) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node: &api.Node{Address: "192.0.2.1"}, Service: &api.AgentService{Address: address, Port: port, Meta: map[string]string{}},
		Checks: api.HealthChecks{{Status: api.HealthPassing}, {Status: status}},
	}
}

func TestEndpoints(t *testing.T) {
	by, err := endpoints([]*api.ServiceEntry{
		entry("10.0.0.2", 80, api.HealthPassing), entry("10.0.0.1", 80, api.HealthPassing), entry("10.0.0.1", 80, api.HealthPassing),
		entry("10.0.0.3", 80, api.HealthWarning), entry("10.0.0.4", 80, api.HealthCritical), entry("10.0.0.5", 80, api.HealthMaint),
		entry("", 21000, api.HealthPassing),
	})
	if err != nil || len(by) != 2 || fmt.Sprint(by[80]) != "[10.0.0.1 10.0.0.2]" || fmt.Sprint(by[21000]) != "[192.0.2.1]" {
		t.Error(by, err)
	}
	by, err = endpoints([]*api.ServiceEntry{
		entry("10.0.0.1", 80, api.HealthPassing), entry("fd00::1", 80, api.HealthPassing), entry("127.0.0.1", 80, api.HealthPassing),
		entry("169.254.1.1", 80, api.HealthPassing), entry("db.example", 80, api.HealthPassing), entry("10.0.0.2", 0, api.HealthPassing),
	})
	if len(by) != 1 || len(by[80]) != 1 {
		t.Error(by)
	}
	for _, bad := range []string{"fd00::1:80", "127.0.0.1:80", "169.254.1.1:80", "db.example:80", "10.0.0.2:0"} {
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s is not named: %v", bad, err)
		}
	}
}

func TestForeign(t *testing.T) {
	own := entry("10.0.0.1", 80, api.HealthPassing)
	own.Service.Meta = map[string]string{export.MetaSource: export.Source, export.MetaFabric: "prod"}
	all := []*api.ServiceEntry{own, entry("10.0.0.2", 80, api.HealthPassing)}
	if got := foreign("prod", all); len(got) != 1 || got[0] != all[1] || all[0] != own {
		t.Error(got)
	}
	if got := foreign("other", all); len(got) != 2 {
		t.Error(got)
	}
}

func TestSlicesOf(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db", UID: "u"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "sql", Port: 5432}}}}
	by := map[int32][]netip.Addr{21001: {netip.MustParseAddr("192.0.2.1")}}
	for i := range 150 {
		by[21000] = append(by[21000], netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}))
	}
	got, err := slicesOf(svc, by)
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"db-consul-21000-0", "db-consul-21000-1", "db-consul-21001-0"}) {
		t.Error(names)
	}
	if s := got["db-consul-21000-1"]; len(s.Endpoints) != 50 || *s.Ports[0].Port != 21000 || *s.Ports[0].Name != "sql" || *s.Ports[0].Protocol != corev1.ProtocolTCP {
		t.Errorf("%+v", s)
	}
	one := got["db-consul-21001-0"]
	if differs(one, one.DeepCopy()) {
		t.Error("a slice differs from itself")
	}
	ill := one.DeepCopy()
	ill.Endpoints[0].Conditions.Ready = new(false)
	moved := one.DeepCopy()
	moved.Endpoints[0].Addresses[0] = "192.0.2.2"
	if !differs(ill, one) || !differs(moved, one) {
		t.Error("no difference is seen")
	}
	svc.Spec.Ports = nil
	if _, err := slicesOf(svc, by); err == nil {
		t.Error("a Service without a port")
	}
}
