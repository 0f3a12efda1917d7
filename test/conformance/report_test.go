package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/report.md anew")

func fixtureNodes(t *testing.T) map[string]results {
	at := time.Date(2026, 11, 25, 19, 0, 0, 0, time.UTC)
	mk := func(s software, r []result) *pass {
		return &pass{Started: at, Seconds: 330, Command: selection{focus: focusOf("node"), procs: 6}.command(), Software: s, Results: r}
	}
	v := software{"v1.35.4-nomad", "nomad://1.11.3", "6.18.0", "Linux", 2}
	c := software{"v1.35.4", "containerd://1.6.20", "6.18.0", "Debian", 2}
	return map[string]results{
		virtualNode: {"sig-node": mk(v, readFixture(t, "virtual.xml")),
			"sig-node, serial": mk(v, []result{{Spec: "[sig-node] Resize [Serial] [Conformance]", State: failed, Failure: "a | in <it>"}})},
		controlNode: {"sig-node": mk(c, []result{
			{Spec: "[sig-node] Pods should be updated [NodeConformance] [Conformance]", State: passed},
			{Spec: "[sig-node] Probing container should fail [NodeConformance] [Conformance]", State: passed},
			{Spec: "[sig-node] Control only [Conformance]", State: failed, Failure: "no luck"},
		})},
	}
}

const fixtureReasons = `
- specs: 'Probing container should fail'
  kind: open
  reason: It is not there yet.
  wayOut: Write it.
- specs: '\[sig-node\] Resize'
  kind: impossible
  reason: Nomad replaces allocations.
  proof: Its documentation says so.
`

func TestReport(t *testing.T) {
	reasons, err := parseReasons([]byte(fixtureReasons))
	if err != nil {
		t.Fatal(err)
	}
	got := report(fixtureNodes(t), reasons)
	file := filepath.Join("testdata", "report.md")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("go test ./test/conformance -update writes it anew:\n%s", d)
	}
	if again := report(fixtureNodes(t), reasons); again != got {
		t.Error("equal results make different pages")
	}
}

func TestStaleReasons(t *testing.T) {
	reasons, err := parseReasons([]byte(fixtureReasons + `
- {specs: 'should be updated', kind: machine, reason: slow}
- {specs: 'no such spec', kind: machine, reason: slow}
- {specs: 'Pods', node: kubelet, kind: machine, reason: slow}
`))
	if err != nil {
		t.Fatal(err)
	}
	nodes := fixtureNodes(t)
	got := errors.Join(stale(reasons, nodes)...).Error()
	for _, want := range []string{
		`"[sig-node] Pods should be updated [NodeConformance] [Conformance]" (node virtual) passes`,
		`"no such spec" matches no spec`,
		`"[sig-node] Pods should be updated [NodeConformance] [Conformance]" (node kubelet) passes`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %q in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "reasons:"); n != 3 {
		t.Errorf("%d errors:\n%s", n, got)
	}
	// What has not been run cannot be stale.
	delete(nodes, controlNode)
	if n := len(stale(reasons, nodes)); n != 2 {
		t.Errorf("%d errors without the control's results", n)
	}
}

func TestReasonsAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		`[{specs: 'a', kind: open, reason: b}]`:                    "wayOut",
		`[{specs: 'a', kind: sometimes, reason: b}]`:               "wayOut",
		`[{specs: 'a', failure: '(', kind: machine, reason: b}]`:   "failure",
		`[{specs: 'a', kind: impossible, reason: b}]`:              "proof",
		`[{specs: 'a', kind: machine}]`:                            "reason: is missing",
		`[{specs: 'a', kind: lazy, reason: b}]`:                    "kind",
		`[{specs: '(', kind: machine, reason: b}]`:                 "specs",
		`[{kind: machine, reason: b}]`:                             "specs: is missing",
		`[{specs: 'a', node: x, kind: machine, reason: b}]`:        "node",
		`[{specs: 'a', kind: machine, reason: b, remedy: 'typo'}]`: "remedy",
	} {
		if _, err := parseReasons([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v does not name %q", text, err, want)
		}
	}
}

// A reason that comes and goes explains only the failure that it names, and is
// not stale when the spec passes.
func TestSometimes(t *testing.T) {
	reasons, err := parseReasons([]byte(`[{specs: '.', failure: '^lost', kind: sometimes, reason: a, wayOut: b}]`))
	if err != nil {
		t.Fatal(err)
	}
	node := map[string]results{virtualNode: {"sig-node": &pass{Results: []result{
		{Spec: "a", State: passed}, {Spec: "b", State: failed, Failure: "lost it"}, {Spec: "c", State: failed, Failure: "broken"},
	}}}}
	if errs := stale(reasons, node); len(errs) > 0 {
		t.Error(errs)
	}
	if d := cmp.Diff([]string{"c"}, unexplained(node[virtualNode].all(), virtualNode, reasons)); d != "" {
		t.Error(d)
	}
}

// The committed page is what the committed results and reasons make.
func TestDocsAreCurrent(t *testing.T) {
	p := place{root: filepath.Join("..", "..")}
	byNode, reasons, err := p.kept()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(p.root, "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(got), report(byNode, reasons)); d != "" {
		t.Errorf("docs/conformance.md: run make conformance-docs:\n%s", d)
	}
	for _, err := range stale(reasons, byNode) {
		t.Error(err)
	}
}
