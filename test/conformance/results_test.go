package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readFixture(t *testing.T, file string) []result {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readJUnit(data)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A spec that the focus left out is none of the results; one that skipped
// itself is, with its reason. Labels behind the text are ginkgo's, not the name.
func TestReadJUnit(t *testing.T) {
	got := readFixture(t, "virtual.xml")
	want := []result{
		{Spec: "[sig-node] Pods panics [Conformance]", State: failed, Failure: "runtime error: index out of range"},
		{Spec: "[sig-node] Pods should be updated [NodeConformance] [Conformance]", State: passed, Seconds: 6.1},
		{Spec: "[sig-node] Probing container should fail [NodeConformance] [Conformance]", State: failed, Seconds: 300.2,
			Failure: "Timed out after 300.001s. Expected Pod to be Running"},
		{Spec: "[sig-node] Sysctls needs a kernel [Conformance]", State: skipped, Failure: "Only supported on another kernel"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	p := &pass{Results: got}
	if s := p.summary(); s != "1 passed, 2 failed" {
		t.Errorf("summary: %q", s)
	}
}

func TestReadJUnitFailsWithTheSuite(t *testing.T) {
	const report = `<testsuites><testsuite><testcase name="[SynchronizedBeforeSuite]" status="failed"><failure message="no node is ready"/></testcase></testsuite></testsuites>`
	if _, err := readJUnit([]byte(report)); err == nil || !strings.Contains(err.Error(), "no node is ready") {
		t.Errorf("error: %v", err)
	}
	if _, err := readJUnit([]byte("nonsense")); err == nil {
		t.Error("nonsense is read without an error")
	}
}

func TestOneLine(t *testing.T) {
	if got := oneLine(" a\n\n  b\tc "); got != "a b c" {
		t.Errorf("%q", got)
	}
	if got := oneLine("Expected\n    <*errors.errorString | 0xa1d0>: \n    no\n <string>: luck"); got != "Expected no luck" {
		t.Errorf("%q", got)
	}
	if got := oneLine("want " + strings.Repeat("x", 500) + "\nhave y"); got != "want "+strings.Repeat("x", 40)+"... have y" {
		t.Errorf("%q", got)
	}
	if got := oneLine(strings.Repeat("é ", 500)); got != strings.Repeat("é ", maxFailure/2)+"..." {
		t.Errorf("%q", got)
	}
}

func TestKeepReplacesOnePass(t *testing.T) {
	root := t.TempDir()
	one := &pass{Command: "one", Results: []result{{Spec: "a", State: failed}}}
	two := &pass{Command: "two", Results: []result{{Spec: "b", State: passed}}}
	again := &pass{Command: "again", Results: []result{{Spec: "a", State: passed}}}
	for _, k := range []struct {
		name string
		p    *pass
	}{{"sig-node", one}, {"sig-node, serial", two}, {"sig-node", again}} {
		if err := keep(root, virtualNode, k.name, k.p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := loadResults(root, virtualNode)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(results{"sig-node": again, "sig-node, serial": two}, got); d != "" {
		t.Error(d)
	}
	if other, err := loadResults(root, controlNode); err != nil || len(other) != 0 {
		t.Errorf("the other node has %v, %v", other, err)
	}
}
