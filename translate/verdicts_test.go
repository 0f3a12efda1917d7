package translate

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// leaves lists the paths of all fields below a type, in the names of the
// JSON form; lists are passed through.
func leaves(t reflect.Type, path string, out *[]string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[resource.Quantity](), reflect.TypeFor[intstr.IntOrString](), reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.FieldsV1]():
		*out = append(*out, path)
		return
	}
	if t.Kind() != reflect.Struct {
		*out = append(*out, path)
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && strings.Contains(opts, "inline"):
			leaves(f.Type, path, out)
		default:
			leaves(f.Type, strings.TrimPrefix(path+"."+name, "."), out)
		}
	}
}

func podLeaves() []string {
	var all []string
	leaves(reflect.TypeFor[corev1.PodSpec](), "", &all)
	return all
}

func TestEveryFieldHasAVerdict(t *testing.T) {
	for _, path := range podLeaves() {
		if _, ok := VerdictFor(path); !ok {
			t.Errorf("no verdict on %s", path)
		}
	}
}

func TestEveryVerdictHasAField(t *testing.T) {
	all := podLeaves()
	for path, v := range verdicts {
		prefix, below := strings.CutSuffix(path, "*")
		if !slices.ContainsFunc(all, func(l string) bool { return l == path || below && strings.HasPrefix(l, prefix) }) {
			t.Errorf("verdict on %s, which is no field", path)
		}
		switch v.Kind {
		case Carried, Kept:
		case Approximated, Refused, Scheduler:
			if v.Text == "" {
				t.Errorf("verdict on %s is %s and says not how or why", path, v.Kind)
			}
		default:
			t.Errorf("verdict on %s is of kind %q", path, v.Kind)
		}
	}
}

func TestVerdictForUnknownField(t *testing.T) {
	for _, path := range []string{"", "none", "containers", "containers.imageX"} {
		if v, ok := VerdictFor(path); ok {
			t.Errorf("VerdictFor(%q) = %v", path, v)
		}
	}
}
