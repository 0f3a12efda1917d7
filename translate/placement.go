package translate

import (
	"math/bits"
	"slices"

	"github.com/hashicorp/nomad/api"
	"sigs.k8s.io/yaml"
)

// Nomad's priorities, of which the middle is its default.
const (
	minPriority     = 1
	defaultPriority = 50
	maxPriority     = 100
	// systemPriority is the least of the classes that Kubernetes reserves.
	systemPriority = 2_000_000_000
)

// priority maps Kubernetes' priorities to Nomad's 1..100, keeping their
// order where the magnitudes differ: 0 is 50, system classes are 100.
func priority(p *int32) int {
	switch {
	case p == nil || *p == 0:
		return defaultPriority
	case *p >= systemPriority:
		return maxPriority
	case *p > 0:
		return defaultPriority + bits.Len32(uint32(*p))
	}
	return max(minPriority, defaultPriority-bits.Len64(uint64(-int64(*p))))
}

// placeRule is one entry of the placement annotations.
type placeRule struct {
	Attribute string `json:"attribute"`
	Operator  string `json:"operator"`
	Value     string `json:"value"`
	Weight    *int8  `json:"weight"`
}

var operators = []string{
	"=", "==", "is", "!=", "not", "<", "<=", ">", ">=", "regexp", "version", "semver",
	"set_contains", "set_contains_all", "set_contains_any", "is_set", "is_not_set",
}

// placement carries the annotations that choose among the pool's clients.
// Which virtual node the pod is on was kube-scheduler's choice.
func (b *builder) placement() {
	for _, r := range b.rules(AnnotationConstraints) {
		if r.Weight != nil {
			b.refuse("metadata.annotations["+AnnotationConstraints+"]", "a constraint has no weight: use %s", AnnotationAffinities)
		}
		b.job.Constraints = append(b.job.Constraints, &api.Constraint{LTarget: r.Attribute, Operand: r.Operator, RTarget: r.Value})
	}
	for _, r := range b.rules(AnnotationAffinities) {
		if r.Weight == nil {
			r.Weight = new(int8(50))
		}
		if *r.Weight < -100 || *r.Weight > 100 || *r.Weight == 0 {
			b.refuse("metadata.annotations["+AnnotationAffinities+"]", "weight %d is not within -100 to 100, or is 0", *r.Weight)
		}
		b.job.Affinities = append(b.job.Affinities, &api.Affinity{LTarget: r.Attribute, Operand: r.Operator, RTarget: r.Value, Weight: r.Weight})
	}
}

func (b *builder) rules(annotation string) []placeRule {
	raw, ok := b.pod.Annotations[annotation]
	if !ok {
		return nil
	}
	field := "metadata.annotations[" + annotation + "]"
	var out []placeRule
	if err := yaml.UnmarshalStrict([]byte(raw), &out); err != nil {
		b.refuse(field, "is not a YAML list of {attribute, operator, value}: %v", err)
		return nil
	}
	for i := range out {
		r := &out[i]
		if r.Operator == "" {
			r.Operator = "="
		}
		needsValue := r.Operator != "is_set" && r.Operator != "is_not_set"
		switch {
		case !slices.Contains(operators, r.Operator):
			b.refuse(field, "entry %d: operator %q is none of Nomad's", i+1, r.Operator)
		case r.Attribute == "":
			b.refuse(field, "entry %d: attribute is missing, such as ${attr.cpu.arch}", i+1)
		case needsValue == (r.Value == ""):
			b.refuse(field, "entry %d: operator %s takes %s", i+1, r.Operator, map[bool]string{true: "a value", false: "no value"}[needsValue])
		}
	}
	return out
}
