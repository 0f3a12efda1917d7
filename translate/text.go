package translate

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// A segment is one piece of a value: exactly one of its fields is set, or
// none for the empty literal.
type segment struct {
	lit string
	// item is the key of a projected value.
	item string
	// quoted is set for an item that Nomad's secret block reads; see [Item.Quoted].
	quoted bool
	// run names what only the client knows: an environment variable or node
	// attribute of Nomad's.
	run string
	// env is another variable of the same container, whose value is taken as
	// it stands when the task starts.
	env string
}

// text is a value put together from segments. Values are kept apart this way
// so that $(NAME) may refer to Secrets and to addresses without their values
// being known here.
type text []segment

// What Nomad knows only on the client.
const (
	runPodIP  = "NOMAD_ALLOC_IP_" + podPortLabel
	runHostIP = "attr.unique.network.ip-address"
)

func literal(s string) text { return text{{lit: s}} }

// static returns the value of a text that is known now.
func (t text) static() (string, bool) {
	var b strings.Builder
	for _, s := range t {
		if s.item != "" || s.run != "" || s.env != "" {
			return "", false
		}
		b.WriteString(s.lit)
	}
	return b.String(), true
}

// uses reports whether any segment has the property.
func (t text) uses(has func(segment) bool) bool {
	for _, s := range t {
		if has(s) {
			return true
		}
	}
	return false
}

func (t text) quoted() bool { return t.uses(func(s segment) bool { return s.quoted }) }

func (t text) projected() bool { return t.uses(func(s segment) bool { return s.item != "" }) }

// plainEnv renders a text for Nomad's env block. Nomad replaces ${name} there
// where the name is known to it and has no escape for it, so literals that
// hold "${" are not ok.
func (t text) plainEnv() (value string, ok bool) {
	var b strings.Builder
	for _, s := range t {
		switch {
		case s.quoted:
			b.WriteString("${secret." + secretBlock + "." + s.item + "}")
		case s.item != "" || s.env != "":
			return "", false
		case s.run != "":
			b.WriteString("${" + s.run + "}")
		case strings.Contains(s.lit, "${"):
			return "", false
		default:
			b.WriteString(s.lit)
		}
	}
	// A '$' literal before a reference, or a "${" split over two literals.
	v := b.String()
	if strings.Count(v, "${") != t.count(func(s segment) bool { return s.run != "" || s.quoted }) || strings.Contains(v, "$${") {
		return "", false
	}
	return v, true
}

func (t text) count(has func(segment) bool) (n int) {
	for _, s := range t {
		if has(s) {
			n++
		}
	}
	return n
}

// config renders a text for a driver's config, where Nomad evaluates HCL
// templates.
func (t text) config() string {
	var b strings.Builder
	lit := ""
	for _, s := range t {
		if s.run == "" && s.env == "" {
			lit += s.lit
			continue
		}
		b.WriteString(escapeHCL(lit))
		// A literal that ends in $ would otherwise escape the reference.
		if strings.HasSuffix(lit, "$") || strings.HasSuffix(lit, "%") {
			v := b.String()
			b.Reset()
			b.WriteString(v[:len(v)-1] + `${"` + v[len(v)-1:] + `"}`)
		}
		lit = ""
		switch {
		case s.env != "":
			b.WriteString(`${env[` + hclString(s.env) + `]}`)
		case strings.HasPrefix(s.run, "attr."):
			b.WriteString("${" + s.run + "}")
		default:
			b.WriteString(`${env["` + s.run + `"]}`)
		}
	}
	b.WriteString(escapeHCL(lit))
	return b.String()
}

// template renders a text as the argument of a Go template's pipeline, within
// the scope of the job's Variable.
func (t text) template() string {
	parts := make([]string, 0, len(t))
	for _, s := range t {
		switch {
		case s.quoted:
			parts = append(parts, `((index . "`+s.item+`").Value | parseJSON)`)
		case s.item != "":
			parts = append(parts, itemExpr(s.item))
		case s.run != "":
			parts = append(parts, `(env "`+s.run+`")`)
		default:
			parts = append(parts, strconv.Quote(s.lit))
		}
	}
	switch len(parts) {
	case 0:
		return `""`
	case 1:
		return parts[0]
	}
	return `printf "` + strings.Repeat("%s", len(parts)) + `" ` + strings.Join(parts, " ")
}

// itemExpr yields an item's decoded value, and nothing when it is missing:
// an error in one template stops every later update of the task.
func itemExpr(key string) string {
	return `((index . "` + key + `").Value | base64Decode)`
}

// escapeHCL protects user text from HCL's template evaluation in a driver's
// configuration.
func escapeHCL(s string) string {
	if !strings.Contains(s, "${") && !strings.Contains(s, "%{") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c == '$' || c == '%') && i+1 < len(s) && s[i+1] == '{' {
			b.WriteByte(c)
		}
		b.WriteByte(c)
	}
	return b.String()
}

func escapeAll(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = escapeHCL(s)
	}
	return out
}

// hclString quotes s as an HCL string literal.
func hclString(s string) string {
	r := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "${", "$${", "%{", "%%{")
	return `"` + r.Replace(s) + `"`
}

// expand replaces $(NAME) in s: $$ stands for $, names that lookup does not
// know are left as they are, as in
// k8s.io/kubernetes/third_party/forked/golang/expansion.
func expand(s string, lookup func(name string) (text, bool)) text {
	var out text
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			out = append(out, segment{lit: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(s); {
		if s[i] != '$' || i+1 == len(s) {
			lit.WriteByte(s[i])
			i++
			continue
		}
		rest := s[i+1:]
		switch rest[0] {
		case '$':
			lit.WriteByte('$')
			i += 2
		case '(':
			end := strings.IndexByte(rest, ')')
			if end < 0 {
				lit.WriteString("$(")
				i += 2
				continue
			}
			name := rest[1:end]
			if v, ok := lookup(name); ok {
				flush()
				out = append(out, v...)
			} else {
				lit.WriteString("$(" + name + ")")
			}
			i += 1 + end + 1
		default:
			_, size := utf8.DecodeRuneInString(rest)
			lit.WriteString(s[i : i+1+size])
			i += 1 + size
		}
	}
	flush()
	if out == nil {
		out = literal("")
	}
	return out
}
