package annotations

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(a map[string]string, spec corev1.ServiceSpec) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: a}, Spec: spec}
}

func TestExports(t *testing.T) {
	loud := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{Export: "true"}}}
	for _, c := range []struct {
		name string
		svc  *corev1.Service
		ns   *corev1.Namespace
		want bool
		err  string
	}{
		{"says nothing", service(nil, corev1.ServiceSpec{}), &corev1.Namespace{}, false, ""},
		{"true", service(map[string]string{Export: "true"}, corev1.ServiceSpec{}), nil, true, ""},
		{"its namespace", service(nil, corev1.ServiceSpec{}), loud, true, ""},
		{"not it", service(map[string]string{Export: "false"}, corev1.ServiceSpec{}), loud, false, ""},
		{"yes", service(map[string]string{Export: "yes"}, corev1.ServiceSpec{}), nil, false, `"yes" is neither`},
		{"external", service(map[string]string{Export: "true"}, corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName}), nil, false, "spec.type: "},
		{"both", service(map[string]string{Export: "true", Import: "db"}, corev1.ServiceSpec{}), nil, false, "remove one"},
		{"imported in such a namespace", service(map[string]string{Import: "db"}, corev1.ServiceSpec{}), loud, false, ""},
	} {
		got, err := Exports(c.svc, c.ns)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
	}
}

func TestPortOf(t *testing.T) {
	one := []corev1.ServicePort{{Port: 80}}
	two := []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "admin", Port: 8081}}
	for _, c := range []struct {
		ports []corev1.ServicePort
		word  string
		want  int32
		err   string
	}{
		{one, "", 80, ""}, {two, "admin", 8081, ""}, {two, "8081", 8081, ""}, {nil, "", 0, ""},
		{two, "", 0, "several ports and Consul takes one: name one of http, admin"},
		{two, "grpc", 0, `has no port "grpc": name one of http, admin`},
		{one, "http", 0, `no port "http": name one of 80`},
	} {
		a := map[string]string{}
		if c.word != "" {
			a[Port] = c.word
		}
		p, err := PortOf(service(a, corev1.ServiceSpec{Ports: c.ports}))
		var got int32
		if p != nil {
			got = p.Port
		}
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v %q: %v %v", c.ports, c.word, got, err)
		}
	}
}

func TestNames(t *testing.T) {
	if n, err := Name(service(nil, corev1.ServiceSpec{})); n != "web" || err != nil {
		t.Error(n, err)
	}
	if n, err := Name(service(map[string]string{Service: "front"}, corev1.ServiceSpec{})); n != "front" || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []string{"", "Front End", "a.b"} {
		if _, err := Name(service(map[string]string{Service: bad}, corev1.ServiceSpec{})); err == nil || !strings.Contains(err.Error(), Service) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := CheckName("db"); err != nil {
		t.Error(err)
	}
	if err := CheckName("my_db"); err == nil || !strings.Contains(err.Error(), `"my_db"`) {
		t.Error(err)
	}
}

func TestImports(t *testing.T) {
	a := map[string]string{Import: "db", Tag: "primary"}
	if n, tag, err := Imports(service(a, corev1.ServiceSpec{})); n != "db" || tag != "primary" || err != nil {
		t.Error(n, tag, err)
	}
	if _, _, err := Imports(service(a, corev1.ServiceSpec{Selector: map[string]string{"a": "b"}})); err == nil || !strings.HasPrefix(err.Error(), "spec.selector: ") {
		t.Error(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{Import: " db, web,,db"}}}
	if names, all := ImportedBy(ns); all || !slices.Equal(names, []string{"db", "web"}) {
		t.Error(names, all)
	}
	ns.Annotations[Import] = All
	if names, all := ImportedBy(ns); !all || len(names) != 0 {
		t.Error(names, all)
	}
}
