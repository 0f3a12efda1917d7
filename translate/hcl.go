package translate

import (
	"fmt"
	"math/big"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/hashicorp/nomad/api"
	"github.com/zclconf/go-cty/cty"
)

// HCL renders a job as the specification that nomad job run takes. Reading
// it back yields the same job: "${" is escaped, except where a reference is
// the whole string.
//
// It follows the hcl tags of Nomad's API types, so it errs when those hold a
// kind of value that it does not know.
func HCL(job *api.Job) ([]byte, error) {
	w := &hclWriter{}
	file := hclwrite.NewEmptyFile()
	id := ""
	if job.ID != nil {
		id = *job.ID
	}
	block := file.Body().AppendNewBlock("job", []string{id})
	w.structure(block.Body(), reflect.ValueOf(job).Elem(), "id")
	if w.err != nil {
		return nil, fmt.Errorf("job %s as HCL: %w", id, w.err)
	}
	return hclwrite.Format(file.Bytes()), nil
}

// hclWriter keeps the first error.
type hclWriter struct{ err error }

func (w *hclWriter) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

var durationType = reflect.TypeFor[time.Duration]()

// structure writes the fields of v that have an hcl tag, attributes before
// blocks.
func (w *hclWriter) structure(body *hclwrite.Body, v reflect.Value, skip string) {
	for _, blocks := range []bool{false, true} {
		for i := range v.NumField() {
			name, kind, _ := strings.Cut(v.Type().Field(i).Tag.Get("hcl"), ",")
			isBlock := strings.HasPrefix(kind, "block")
			if name == "" || name == skip || isBlock != blocks || kind == "label" {
				continue
			}
			f := v.Field(i)
			if f.Kind() == reflect.Pointer && f.IsNil() || isEmpty(f) {
				continue
			}
			if isBlock {
				w.block(body, name, f)
			} else {
				w.attribute(body, name, f)
			}
		}
	}
}

// isEmpty reports whether a field says nothing. What a pointer points to says
// something, zero or not.
func isEmpty(f reflect.Value) bool {
	switch f.Kind() {
	case reflect.Slice, reflect.Map:
		return f.Len() == 0
	case reflect.Pointer:
		return false
	}
	return f.IsZero()
}

// block writes a field that is one block, several, or a map.
func (w *hclWriter) block(body *hclwrite.Body, name string, f reflect.Value) {
	switch {
	case f.Kind() == reflect.Map && (name == "env" || name == "meta") && !identifiers(f):
		// Keys that are no identifiers are allowed in the attribute's form.
		w.attribute(body, name, f)
	case f.Kind() == reflect.Map && f.Type().Elem().Kind() == reflect.Pointer:
		for _, key := range sortedMapKeys(f) {
			w.block(body, name, f.MapIndex(reflect.ValueOf(key)))
		}
	case f.Kind() == reflect.Map:
		w.mapBody(body.AppendNewBlock(name, nil).Body(), f)
	case f.Kind() == reflect.Slice:
		for i := range f.Len() {
			w.block(body, name, f.Index(i))
		}
	case f.Kind() == reflect.Pointer:
		w.block(body, name, f.Elem())
	case f.Kind() == reflect.Struct:
		// A reserved port is written as any other, with its number.
		if name == "reserved_ports" {
			name = "port"
		}
		var labels []string
		if l, ok := label(f); ok {
			labels = []string{l}
		}
		w.structure(body.AppendNewBlock(name, labels).Body(), f, "")
	default:
		w.fail("block %s: %s", name, f.Type())
	}
}

// label finds the block's label, which the API types tag "name,label" or ",label".
func label(v reflect.Value) (string, bool) {
	for i := range v.NumField() {
		if _, kind, _ := strings.Cut(v.Type().Field(i).Tag.Get("hcl"), ","); kind == "label" {
			f := v.Field(i)
			for f.Kind() == reflect.Pointer && !f.IsNil() {
				f = f.Elem()
			}
			return f.String(), true
		}
	}
	return "", false
}

func (w *hclWriter) attribute(body *hclwrite.Body, name string, f reflect.Value) {
	body.SetAttributeRaw(name, w.tokens(f))
}

// mapBody writes a map's entries as attributes, and lists of maps, which is
// how drivers' configurations hold blocks, as blocks.
func (w *hclWriter) mapBody(body *hclwrite.Body, f reflect.Value) {
	for _, key := range sortedMapKeys(f) {
		v := indirect(f.MapIndex(reflect.ValueOf(key)))
		if !v.IsValid() {
			continue
		}
		if !hclsyntax.ValidIdentifier(key) {
			w.fail("%q is no identifier", key)
			continue
		}
		if v.Kind() == reflect.Slice && v.Len() > 0 && isBlockList(v) {
			for i := range v.Len() {
				w.mapBody(body.AppendNewBlock(key, nil).Body(), indirect(v.Index(i)))
			}
			continue
		}
		body.SetAttributeRaw(key, w.tokens(v))
	}
}

func isBlockList(v reflect.Value) bool {
	for i := range v.Len() {
		if e := indirect(v.Index(i)); !e.IsValid() || e.Kind() != reflect.Map || !identifiers(e) {
			return false
		}
	}
	return true
}

func identifiers(m reflect.Value) bool {
	for _, k := range sortedMapKeys(m) {
		if !hclsyntax.ValidIdentifier(k) {
			return false
		}
	}
	return true
}

func sortedMapKeys(m reflect.Value) []string {
	keys := map[string]bool{}
	for _, k := range m.MapKeys() {
		keys[k.String()] = true
	}
	return sortedKeys(keys)
}

func indirect(v reflect.Value) reflect.Value {
	for v.IsValid() && (v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer) {
		v = v.Elem()
	}
	return v
}

// tokens writes a value as an expression.
func (w *hclWriter) tokens(v reflect.Value) hclwrite.Tokens {
	v = indirect(v)
	switch {
	case !v.IsValid():
		return hclwrite.TokensForValue(cty.NullVal(cty.DynamicPseudoType))
	case v.Type() == durationType:
		return hclwrite.TokensForValue(cty.StringVal(time.Duration(v.Int()).String()))
	case v.CanInt():
		return hclwrite.TokensForValue(cty.NumberIntVal(v.Int()))
	case v.CanUint():
		return hclwrite.TokensForValue(cty.NumberUIntVal(v.Uint()))
	case v.CanFloat():
		return hclwrite.TokensForValue(cty.NumberVal(big.NewFloat(v.Float())))
	}
	switch v.Kind() {
	case reflect.String:
		return stringTokens(v.String())
	case reflect.Bool:
		return hclwrite.TokensForValue(cty.BoolVal(v.Bool()))
	case reflect.Slice:
		elems := make([]hclwrite.Tokens, v.Len())
		for i := range elems {
			elems[i] = w.tokens(v.Index(i))
		}
		return hclwrite.TokensForTuple(elems)
	case reflect.Map:
		var attrs []hclwrite.ObjectAttrTokens
		for _, key := range sortedMapKeys(v) {
			attrs = append(attrs, hclwrite.ObjectAttrTokens{
				Name:  hclwrite.TokensForValue(cty.StringVal(key)),
				Value: w.tokens(v.MapIndex(reflect.ValueOf(key))),
			})
		}
		return hclwrite.TokensForObject(attrs)
	}
	w.fail("value of type %s", v.Type())
	return nil
}

// wholeReference is a string that is nothing but one reference, which
// Nomad's parser leaves as it is.
var wholeReference = regexp.MustCompile(`^\$\{[A-Za-z_][A-Za-z0-9_.-]*\}$`)

func stringTokens(s string) hclwrite.Tokens {
	if !wholeReference.MatchString(s) {
		return hclwrite.TokensForValue(cty.StringVal(s))
	}
	return hclwrite.Tokens{
		{Type: hclsyntax.TokenOQuote, Bytes: []byte{'"'}},
		{Type: hclsyntax.TokenQuotedLit, Bytes: []byte(s)},
		{Type: hclsyntax.TokenCQuote, Bytes: []byte{'"'}},
	}
}
