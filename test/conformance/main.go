package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

type flags struct {
	node, sig     string
	focus, skip   string
	procs         int
	serial, short bool
	docs, images  bool
	leave         bool
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var f flags
	set := flag.NewFlagSet("conformance", flag.ContinueOnError)
	set.StringVar(&f.node, "node", "both", "virtual, kubelet (the control) or both")
	set.StringVar(&f.sig, "sig", "node", "the group of specs: node, storage, apps, network, ...")
	set.StringVar(&f.focus, "focus", "", "regular expression of specs to run, instead of the default; such results are not kept")
	set.StringVar(&f.skip, "skip", "", "regular expression of specs to leave out, instead of the default; such results are not kept")
	set.IntVar(&f.procs, "procs", 6, "how many specs at a time")
	set.BoolVar(&f.serial, "serial", false, "run the serial, slow and disruptive specs, one at a time")
	set.BoolVar(&f.short, "short", false, "run only the specs of short.txt, all of which must pass; such results are not kept")
	set.BoolVar(&f.docs, "docs", false, "only write docs/conformance.md from the kept results")
	set.BoolVar(&f.images, "images", false, "only build the suite's images")
	set.BoolVar(&f.leave, "leave", false, "leave the cluster running, to be looked at; the next run clears it away")
	if err := set.Parse(args); err != nil {
		return err
	}
	p, err := here()
	if err != nil {
		return err
	}
	if f.docs {
		return p.writeDocs(out)
	}
	nodes := []string{f.node}
	switch f.node {
	case "both":
		nodes = []string{virtualNode, controlNode}
	case virtualNode, controlNode:
	default:
		return fmt.Errorf("-node: %q is none of %s, %s, both", f.node, virtualNode, controlNode)
	}
	sel, err := p.selection(f)
	if err != nil {
		return err
	}
	images, err := buildImages(ctx, filepath.Join(p.work, "images"), p.binDir, out)
	if err != nil || f.images {
		return err
	}
	return p.measure(ctx, nodes, sel, images, f, out)
}

// here finds the repository from the working directory.
func here() (place, error) {
	root, err := os.Getwd()
	if err != nil {
		return place{}, err
	}
	if _, err := os.Stat(filepath.Join(root, "test", "conformance", "doc.go")); err != nil {
		return place{}, errors.New("run this from the root of the repository")
	}
	return place{root: root, binDir: filepath.Join(root, "bin"), work: filepath.Join(root, ".dev", "conformance")}, nil
}

func (p place) selection(f flags) (selection, error) {
	s := selection{focus: f.focus, skip: f.skip, procs: f.procs, network: f.sig == networkSIG}
	switch {
	case f.short:
		specs, err := shortSpecs(filepath.Join(p.root, "test", "conformance", "short.txt"))
		if err != nil {
			return s, err
		}
		s.focus = specs
	case f.serial:
		s.procs, s.labels = 1, serialLabels
		if f.focus == "" && f.skip == "" {
			s.pass, s.skip = "sig-"+f.sig+", serial", serialSkip
		}
	case f.focus == "" && f.skip == "":
		s.pass, s.skip = "sig-"+f.sig, defaultSkip
	}
	if s.focus == "" {
		s.focus = focusOf(f.sig)
	}
	if s.skip == "" && !f.short && s.pass == "" && !f.serial {
		s.skip = defaultSkip
	}
	return s, nil
}

// measure runs the suite on each node, keeps the results, and tells what is
// not as the reasons say.
func (p place) measure(ctx context.Context, nodes []string, sel selection, images *archive, f flags, out io.Writer) error {
	var errs []error
	for _, node := range nodes {
		got, err := p.runOn(ctx, node, sel, images, f.leave, out)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s\n", node, got.summary())
		if f.short && got.count(failed) > 0 {
			errs = append(errs, fmt.Errorf("%s: %s, and all of short.txt must pass; the log: %s", node, got.summary(), filepath.Join(p.nodeDir(node), "e2e.log")))
		}
		if sel.pass == "" {
			continue
		}
		if err := keep(p.root, node, sel.pass, got); err != nil {
			return err
		}
	}
	if sel.pass != "" {
		errs = append(errs, p.writeDocs(out))
	}
	return errors.Join(errs...)
}

// runOn brings a node's cluster up, runs the suite, and stops it in any case.
func (p place) runOn(ctx context.Context, node string, sel selection, images *archive, leave bool, out io.Writer) (got *pass, err error) {
	dir := p.nodeDir(node)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c, err := p.start(ctx, node, sel.network, images, out)
	if c != nil && !leave {
		defer func() {
			c.SetOutput(out)
			if down := c.Down(context.WithoutCancel(ctx)); down != nil {
				err = errors.Join(err, fmt.Errorf("stop the cluster: %w", down))
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	runs, err := softwareOf(ctx, c, node)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	fmt.Fprintf(out, "Running %s\n  log: %s\n", sel.command(), filepath.Join(dir, "e2e.log"))
	if err := p.runSuite(ctx, sel, c.KubeconfigFile(), dir, out); err != nil {
		return nil, err
	}
	got = &pass{Started: start.UTC().Truncate(time.Second), Seconds: time.Since(start).Round(time.Second).Seconds(), Command: sel.command(), Software: runs}
	data, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		return nil, err
	}
	if got.Results, err = readJUnit(data); err != nil {
		return nil, err
	}
	if got.count(passed)+got.count(failed) == 0 {
		return nil, errors.New("no spec ran: the focus matches none")
	}
	if err := os.WriteFile(filepath.Join(dir, "summary.txt"), []byte(got.summary()+"\n"), 0o644); err != nil {
		return nil, err
	}
	return got, writeJSON(filepath.Join(dir, "results.json"), got)
}

// writeDocs writes docs/conformance.md. The error names failures without a
// reason, and reasons without a failure.
func (p place) writeDocs(out io.Writer) error {
	byNode, reasons, err := p.kept()
	if err != nil {
		return err
	}
	file := filepath.Join(p.root, "docs", "conformance.md")
	if err := os.WriteFile(file, []byte(report(byNode, reasons)), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(out, "wrote docs/conformance.md")
	errs := stale(reasons, byNode)
	for node, r := range byNode {
		if specs := unexplained(r.all(), node, reasons); len(specs) > 0 {
			errs = append(errs, fmt.Errorf("%s: %d specs fail without a reason in test/conformance/reasons.yaml:\n  %s",
				node, len(specs), strings.Join(specs, "\n  ")))
		}
	}
	return errors.Join(errs...)
}

func (p place) kept() (map[string]results, []reason, error) {
	byNode := map[string]results{}
	for _, node := range []string{virtualNode, controlNode} {
		r, err := loadResults(p.root, node)
		if err != nil {
			return nil, nil, err
		}
		byNode[node] = r
	}
	reasons, err := loadReasons(filepath.Join(p.root, "test", "conformance", "reasons.yaml"))
	return byNode, reasons, err
}
