package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// selection says which specs run, and how many at a time.
type selection struct {
	pass        string // its name among the kept results; empty: not kept
	focus, skip string
	labels      string // a ginkgo label filter
	procs       int
	network     bool // they need the pod network
}

// networkSIG is the group whose specs need the pod network.
const networkSIG = "network"

// The default selections.
const (
	defaultSkip = `Serial|Slow|Disruptive|InPlace`
	// What defaultSkip leaves out, but for the resize in place that Nomad has not.
	serialLabels = `Serial || Slow || Disruptive`
	serialSkip   = `InPlace`
)

// focusOf selects the conformance specs of a special interest group.
func focusOf(sig string) string { return `\[sig-` + regexp.QuoteMeta(sig) + `\].*\[Conformance\]` }

func (s selection) ginkgoArgs() []string {
	args := []string{"--procs=" + strconv.Itoa(s.procs), "--focus=" + s.focus}
	if s.skip != "" {
		args = append(args, "--skip="+s.skip)
	}
	if s.labels != "" {
		args = append(args, "--label-filter="+s.labels)
	}
	return args
}

// command is the run as a person would type it, for the report.
func (s selection) command() string {
	var quoted []string
	for _, arg := range s.ginkgoArgs() {
		name, value, _ := strings.Cut(arg, "=")
		if strings.ContainsAny(value, `\ |[]*`) {
			value = "'" + value + "'"
		}
		quoted = append(quoted, name+"="+value)
	}
	return "ginkgo " + strings.Join(quoted, " ") + " e2e.test -- --provider=skeleton"
}

// runSuite runs ginkgo against a cluster. JUnit and log go into dir. That specs
// fail is not an error; that none could run is.
func (p place) runSuite(ctx context.Context, s selection, kubeconfig, dir string, out io.Writer) error {
	junit := filepath.Join(dir, "junit.xml")
	if err := os.Remove(junit); err != nil && !os.IsNotExist(err) {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "e2e.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(s.ginkgoArgs(), "--no-color", "--timeout=4h", "--output-dir="+dir, "--junit-report=junit.xml",
		filepath.Join(p.binDir, "e2e.test"), "--",
		"--kubeconfig="+kubeconfig, "--provider=skeleton", "--kubectl-path="+filepath.Join(p.binDir, "kubectl"), "--num-nodes=1", "--non-blocking-taints="+notMeasured.Key)
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "ginkgo"), args...)
	// Ginkgo ends its processes itself, and needs a moment for it.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Dir = dir
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start ginkgo: %w", err)
	}
	followErr := follow(io.TeeReader(stdout, log), out)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("the suite was interrupted: %w", context.Cause(ctx))
	}
	if followErr != nil {
		return fmt.Errorf("read ginkgo's output: %w", followErr)
	}
	if _, statErr := os.Stat(junit); statErr != nil {
		return fmt.Errorf("ginkgo wrote no report (%v); its log: %s", err, log.Name())
	}
	return nil
}

var failedBullet = regexp.MustCompile(`^ \[(FAILED|PANICKED|TIMEDOUT)`)

// follow reads ginkgo's output to its end and tells how far it is. Each spec
// that ran is a bullet, in a line of its own if it failed.
func follow(log io.Reader, out io.Writer) error {
	const bullet = '•'
	in := bufio.NewReader(log)
	done, failed := 0, 0
	for {
		char, _, err := in.ReadRune()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if char != bullet {
			continue
		}
		done++
		if next, _ := in.Peek(len(" [PANICKED]")); failedBullet.Match(next) {
			failed++
		}
		fmt.Fprintf(out, "  %3d done, %d failed\n", done, failed)
	}
}
