package main

import (
	"slices"
	"testing"
)

func TestHiddenVariablesComeBack(t *testing.T) {
	env := []string{"A=1", "a-b=x y\n", "1=2", "_z=", "ü=\"q\""}
	hidden := hide(env)
	for _, kv := range hidden {
		if !shellName.MatchString(kv) {
			t.Errorf("a shell would drop %q", kv)
		}
	}
	got := restore(hidden)
	slices.Sort(got)
	slices.Sort(env)
	if !slices.Equal(got, env) {
		t.Errorf("%q instead of %q", got, env)
	}
	if plain := []string{"A=1"}; !slices.Equal(hide(plain), plain) {
		t.Error("an environment without such names is changed")
	}
}
