package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// report makes docs/conformance.md of the kept results and the reasons. Equal
// inputs make equal pages.
func report(byNode map[string]results, reasons []reason) string {
	var b strings.Builder
	b.WriteString(`# Conformance

<!-- Written by make conformance from test/conformance; make conformance-docs writes it again. Edits are lost. -->

The upstream Kubernetes e2e suite, run on a virtual node as the only node of a cluster, and on a real kubelet with containerd
as the only node of another one on the same machine: the control. For sig-network the cluster has both, in one [pod network](networking.md), and
the one that is not measured takes no pods. The images are built on the machine under their upstream
names, the same for both. The virtual node is untainted and allows host access for the run. A pass is named after the special
interest group whose specs it runs; *serial* are those that want the cluster for themselves.

`)
	writeTotals(&b, byNode)
	writeComparison(&b, byNode)
	v := byNode[virtualNode].all()
	writeReasons(&b, "Failed, with a way out", "way out", v, reasons, kindOpen, func(r *reason) string { return r.WayOut })
	writeReasons(&b, "Failed by chance: other specs in each run", "way out", v, reasons, kindSometimes, func(r *reason) string { return r.WayOut })
	writeReasons(&b, "Impossible on Nomad", "proof", v, reasons, kindImpossible, func(r *reason) string { return r.Proof })
	writeReasons(&b, "Failed for the machine's sake", "", v, reasons, kindMachine, nil)
	writeUnexplained(&b, "Failed, unexplained", virtualNode, byNode, reasons)
	writeControl(&b, byNode, reasons)
	writeTable(&b, byNode)
	return b.String()
}

func writeTotals(b *strings.Builder, byNode map[string]results) {
	b.WriteString("| node | pass | date | passed | failed | skipped | minutes | kubelet | runtime |\n|---|---|---|---|---|---|---|---|---|\n")
	commands := []string{}
	var machine software
	for _, node := range []string{virtualNode, controlNode} {
		for _, name := range slices.Sorted(maps.Keys(byNode[node])) {
			p := byNode[node][name]
			fmt.Fprintf(b, "| %s | %s | %s | %d | %d | %d | %.1f | %s | %s |\n", nodeTitle(node), name, p.Started.UTC().Format("2006-01-02"),
				p.count(passed), p.count(failed), p.count(skipped), p.Seconds/60, p.Software.Kubelet, p.Software.Runtime)
			if line := name + ": " + p.Command; !slices.Contains(commands, line) {
				commands = append(commands, line)
			}
			machine = p.Software
		}
	}
	if len(commands) == 0 {
		b.WriteString("\nNothing has been run yet.\n")
		return
	}
	fmt.Fprintf(b, "\n%d cores, Linux %s.\n\n", machine.Cores, machine.Kernel)
	for _, line := range commands {
		fmt.Fprintf(b, "    %s\n", line)
	}
}

func nodeTitle(node string) string {
	if node == virtualNode {
		return "virtual node"
	}
	return "control"
}

// writeComparison counts the specs that both nodes ran.
func writeComparison(b *strings.Builder, byNode map[string]results) {
	v, c := byNode[virtualNode].all(), byNode[controlNode].all()
	both, both2, of, of2 := 0, 0, 0, 0
	for spec, r := range c {
		if _, ran := v[spec]; !ran || r.State != passed {
			continue
		}
		of++
		node := strings.Contains(spec, "[NodeConformance]")
		if node {
			of2++
		}
		if v[spec].State == passed {
			both++
			if node {
				both2++
			}
		}
	}
	if of == 0 {
		return
	}
	fmt.Fprintf(b, "\nOf the %d specs that the control passes, the virtual node passes %d; of the %d labelled [NodeConformance] among them, %d.\n",
		of, both, of2, both2)
}

func writeReasons(b *strings.Builder, title, last string, specs map[string]result, reasons []reason, kind string, detail func(*reason) string) {
	var rows []string
	for _, spec := range failures(specs) {
		r := reasonFor(reasons, virtualNode, specs[spec])
		if r == nil || r.Kind != kind {
			continue
		}
		row := fmt.Sprintf("| %s | %s |", cell(spec), cell(r.Reason))
		if detail != nil {
			row += fmt.Sprintf(" %s |", cell(detail(r)))
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		return
	}
	head, rule := "| spec | reason |", "|---|---|"
	if detail != nil {
		head, rule = head+" "+last+" |", rule+"---|"
	}
	fmt.Fprintf(b, "\n## %s: %d\n\n%s\n%s\n%s\n", title, len(rows), head, rule, strings.Join(rows, "\n"))
}

func writeUnexplained(b *strings.Builder, title, node string, byNode map[string]results, reasons []reason) {
	specs := byNode[node].all()
	rows := unexplained(specs, node, reasons)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s: %d\n\n| spec | it says |\n|---|---|\n", title, len(rows))
	for _, spec := range rows {
		fmt.Fprintf(b, "| %s | %s |\n", cell(spec), cell(specs[spec].Failure))
	}
}

// writeControl lists what fails on the control, whatever the reason.
func writeControl(b *strings.Builder, byNode map[string]results, reasons []reason) {
	specs := byNode[controlNode].all()
	rows := failures(specs)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Failed on the control: %d\n\n| spec | reason |\n|---|---|\n", len(rows))
	for _, spec := range rows {
		why := specs[spec].Failure
		if r := reasonFor(reasons, controlNode, specs[spec]); r != nil {
			why = r.Reason
		}
		fmt.Fprintf(b, "| %s | %s |\n", cell(spec), cell(why))
	}
}

func writeTable(b *strings.Builder, byNode map[string]results) {
	v, c := byNode[virtualNode].all(), byNode[controlNode].all()
	specs := map[string]bool{}
	for _, of := range []map[string]result{v, c} {
		for spec := range of {
			specs[spec] = true
		}
	}
	if len(specs) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Spec by spec: %d\n\n| spec | virtual node | control |\n|---|---|---|\n", len(specs))
	for _, spec := range slices.Sorted(maps.Keys(specs)) {
		fmt.Fprintf(b, "| %s | %s | %s |\n", cell(spec), state(v, spec), state(c, spec))
	}
}

func state(of map[string]result, spec string) string {
	r, ran := of[spec]
	switch {
	case !ran:
		return "not run"
	case r.State == failed:
		return "**failed**"
	default:
		return r.State
	}
}

func failures(specs map[string]result) []string {
	var out []string
	for _, spec := range slices.Sorted(maps.Keys(specs)) {
		if specs[spec].State == failed {
			out = append(out, spec)
		}
	}
	return out
}

func unexplained(specs map[string]result, node string, reasons []reason) []string {
	return slices.DeleteFunc(failures(specs), func(spec string) bool { return reasonFor(reasons, node, specs[spec]) != nil })
}

// cell is text that cannot break out of a table's cell.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(strings.TrimSpace(text))
}
