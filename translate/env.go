package translate

import (
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// environment is a container's variables while they are put together.
type environment struct {
	values   map[string]text
	services map[string]string
	// template renders the values that cannot stand in the job; "" for none.
	template string
}

// lookup resolves $(NAME): the container's own variables before those of
// services, as the kubelet has it.
func (e *environment) lookup(name string) (text, bool) {
	if v, ok := e.values[name]; ok {
		return v, true
	}
	if v, ok := e.services[name]; ok {
		return literal(v), true
	}
	return nil, false
}

// reference resolves $(NAME) in command and args. What is not known now is
// taken from the variable itself when the task starts.
func (e *environment) reference(name string) (text, bool) {
	v, ok := e.lookup(name)
	if !ok {
		return nil, false
	}
	if s, ok := v.static(); ok {
		return literal(s), true
	}
	return text{{env: name}}, true
}

// environment computes a container's variables with the rules of the
// kubelet's makeEnvironmentVariables (pkg/kubelet/kubelet_pods.go) and hands
// them to the task.
func (b *builder) environment(c *container) {
	b.variables(c)
	b.deliverEnv(c, c.env)
}

// variables computes them.
func (b *builder) variables(c *container) {
	e := &environment{values: map[string]text{}, services: b.serviceEnv()}
	c.env = e
	for i := range c.EnvFrom {
		b.envFrom(c, e, &c.EnvFrom[i])
	}
	for i := range c.Env {
		v := &c.Env[i]
		field := c.path + ".env[" + v.Name + "]"
		value, ok := b.envValue(c, e, v, field)
		if !ok {
			continue
		}
		if reason := b.unfitName(v.Name); reason != "" {
			// Plain values do not pass through the template.
			value = b.quote(value)
			if _, plain := value.plainEnv(); !plain || !anyName.MatchString(v.Name) {
				b.refuse(field, "%s", reason)
				continue
			}
		}
		e.values[v.Name] = value
	}
}

// envItems takes the values of variables: the job's Variable, or for a VM what is
// handed to the companion.
func (b *builder) envItems() *items {
	if b.row.Driver == driverQemu {
		return &b.fileItems
	}
	return &b.items
}

func (b *builder) envValue(c *container, e *environment, v *corev1.EnvVar, field string) (text, bool) {
	if v.Value != "" {
		return expand(v.Value, e.lookup), true
	}
	from := v.ValueFrom
	switch {
	case from == nil:
		return literal(""), true
	case from.FieldRef != nil:
		t, err := b.fieldValue(from.FieldRef.FieldPath)
		if err != nil {
			b.refuse(field+".valueFrom.fieldRef", "%v", err)
			return nil, false
		}
		return t, true
	case from.ResourceFieldRef != nil:
		s, err := b.resourceValue(c, from.ResourceFieldRef, field+".valueFrom.resourceFieldRef")
		if err != nil {
			b.refuse(field+".valueFrom.resourceFieldRef", "%v", err)
			return nil, false
		}
		return literal(s), true
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		if !b.hasKey(kindConfigMap, r.Name, r.Key, isTrue(r.Optional)) {
			return nil, false
		}
		return text{{item: b.envItems().add(Item{ConfigMap: &KeyRef{r.Name, r.Key}, Optional: isTrue(r.Optional)})}}, true
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		if !b.hasKey(kindSecret, r.Name, r.Key, isTrue(r.Optional)) {
			return nil, false
		}
		return text{{item: b.envItems().add(Item{Secret: &KeyRef{r.Name, r.Key}, Optional: isTrue(r.Optional)})}}, true
	case from.FileKeyRef != nil:
		b.refuse(field+".valueFrom.fileKeyRef", "variables from files of a volume are not there yet")
		return nil, false
	}
	return literal(""), true
}

// envFrom adds all keys of a ConfigMap or Secret. Names that the task cannot
// have are left out with a note, as the kubelet did with invalid ones.
func (b *builder) envFrom(c *container, e *environment, from *corev1.EnvFromSource) {
	var kind objectKind
	var name string
	var optional bool
	switch {
	case from.ConfigMapRef != nil:
		kind, name, optional = kindConfigMap, from.ConfigMapRef.Name, isTrue(from.ConfigMapRef.Optional)
	case from.SecretRef != nil:
		kind, name, optional = kindSecret, from.SecretRef.Name, isTrue(from.SecretRef.Optional)
	default:
		return
	}
	keys, known := b.objectKeys(kind, name, optional)
	if !known && b.in.Offline {
		b.note(c.path+".envFrom", "the keys of %s %q are not known here, so its variables are left out", kind, name)
	}
	for _, key := range keys {
		if kind == kindConfigMap && slices.Contains(b.in.BinaryKeys[name], key) {
			continue // as the kubelet does
		}
		variable := from.Prefix + key
		it := kind.item(name, key, true)
		if reason := b.unfitName(variable); reason != "" {
			if it.Quoted = anyName.MatchString(variable); !it.Quoted {
				b.note(c.path+".envFrom", "%s %q: variable %q is left out: %s", kind, name, variable, reason)
				continue
			}
		}
		e.values[variable] = text{{item: b.envItems().add(it), quoted: it.Quoted}}
	}
}

// quote has the projected parts of a value go through Nomad's secret block.
func (b *builder) quote(v text) text {
	out := slices.Clone(v)
	for i, s := range out {
		if s.item == "" || s.quoted {
			continue
		}
		at := slices.IndexFunc(b.items.list, func(it Item) bool { return it.Key == s.item })
		it := b.items.list[at]
		it.Quoted = true
		out[i] = segment{item: b.items.add(it), quoted: true}
	}
	return out
}

// Names that Nomad's reader of environment templates takes
// (github.com/hashicorp/go-envparse), which projected values go through.
var fitName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./]*$`)

// Names that Kubernetes takes, printable ASCII without '=' (KEP-4369), and that
// Nomad takes for values which do not pass through its environment files.
var anyName = regexp.MustCompile(`^[ -<>-~]+$`)

// Nomad replaces what these cannot hold in variables of its own.
var nomadPrefixes = []string{"NOMAD_ADDR_", "NOMAD_IP_", "NOMAD_PORT_", "NOMAD_HOST_PORT_", "NOMAD_META_"}

// unfitName tells why a task cannot have a variable of that name, "" if it can.
func (b *builder) unfitName(name string) string {
	if b.row.Driver == driverQemu && anyName.MatchString(name) {
		return "" // it does not pass through Nomad
	}
	if !fitName.MatchString(name) {
		return "Nomad takes letters, digits, '_', '.' and '/' in the names of variables from Secrets, ConfigMaps and the like, a letter or '_' first"
	}
	for _, p := range nomadPrefixes {
		if strings.HasPrefix(name, p) && strings.ContainsAny(name, "./") {
			return "Nomad changes names that begin with " + p
		}
	}
	return ""
}

// deliverEnv hands plain values to the task's env, and all others to a
// template: what is projected must not stand in the job, and "${" cannot be
// escaped in env.
func (b *builder) deliverEnv(c *container, e *environment) {
	plain := map[string]string{}
	var lines []string
	projected := false
	names := sortedKeys(e.values)
	for name, v := range e.services {
		if _, own := e.values[name]; !own {
			plain[name] = v
		}
	}
	for _, name := range names {
		v := e.values[name]
		b.useRuntime(v)
		if s, ok := v.plainEnv(); ok {
			plain[name] = s
			if v.quoted() {
				b.secretBlock(c)
				b.note(c.path+".env["+name+"]", "is lost when the Nomad client's agent has restarted before the container does (hashicorp/nomad#28237)")
			}
			continue
		}
		projected = projected || v.projected()
		lines = append(lines, name+"={{ "+v.template()+" | toJSON }}\n")
	}
	if len(plain) > 0 {
		c.task.Env = plain
	}
	if len(lines) == 0 {
		return
	}
	data := strings.Join(lines, "")
	if projected {
		data = `{{ with nomadVar "` + VariablePath(*b.job.ID) + `" }}` + data + `{{ end }}`
	}
	e.template = data
}

// envTemplates adds the variables' template once the task's others are known.
//
// Nomad renders the templates with Once and those without by two managers
// side by side, and each replaces all variables from templates by those of
// its own (client/allocrunner/taskrunner/template): a manager without an
// environment would wipe the other's, or not, as it happens. So each manager
// that has something to render gets the variables as well.
func (b *builder) envTemplates(c *container) {
	if c.env == nil || c.env.template == "" {
		return
	}
	once, watched := false, false
	for _, t := range c.task.Templates {
		if isTrue(t.Once) {
			once = true
		} else {
			watched = true
		}
	}
	add := func(dest string, once bool) {
		c.task.Templates = append(c.task.Templates, &api.Template{
			EmbeddedTmpl: new(c.env.template), DestPath: &dest, Envvars: new(true), Once: &once,
			// A running process keeps its environment, in Kubernetes too.
			ChangeMode: new("noop"),
		})
	}
	if once || !watched {
		add("secrets/k8s/env.once", true)
	}
	if watched {
		add("secrets/k8s/env", false)
	}
}

// useRuntime notes what a value needs of Nomad.
func (b *builder) useRuntime(v text) {
	if v.uses(func(s segment) bool { return s.run == runPodIP }) {
		b.needPort = true
	}
}

// objectKind is a kind of object that pods take values from.
type objectKind string

// The kinds, as they stand in messages.
const (
	kindConfigMap objectKind = "configmap"
	kindSecret    objectKind = "secret"
)

func (k objectKind) item(name, key string, optional bool) Item {
	if k == kindSecret {
		return Item{Secret: &KeyRef{name, key}, Optional: optional}
	}
	return Item{ConfigMap: &KeyRef{name, key}, Optional: optional}
}

// objectKeys lists the keys of an object in order. An absent object that is
// not optional is missed, in the kubelet's words.
func (b *builder) objectKeys(kind objectKind, name string, optional bool) (keys []string, known bool) {
	from := b.in.ConfigMaps
	if kind == kindSecret {
		from = b.in.Secrets
	}
	have, ok := from[name]
	if !ok {
		if !optional && !b.in.Offline {
			b.miss("%s %q not found", kind, name)
		}
		return nil, false
	}
	keys = slices.Clone(have)
	slices.Sort(keys)
	return slices.Compact(keys), true
}

// hasKey reports whether a value is there to be projected, and misses it if
// it should be.
func (b *builder) hasKey(kind objectKind, name, key string, optional bool) bool {
	keys, known := b.objectKeys(kind, name, optional)
	if !known {
		return b.in.Offline
	}
	binary := kind == kindConfigMap && slices.Contains(b.in.BinaryKeys[name], key)
	if slices.Contains(keys, key) && !binary {
		return true
	}
	if !optional {
		title := "ConfigMap"
		if kind == kindSecret {
			title = "Secret"
		}
		b.miss("couldn't find key %s in %s %s/%s", key, title, b.pod.Namespace, name)
	}
	return false
}

func isTrue(p *bool) bool { return p != nil && *p }
