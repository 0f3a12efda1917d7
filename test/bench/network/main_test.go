package network

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
)

var (
	strict   = flag.Bool("strict", false, "fail when a goal is missed")
	rounds   = flag.Int("rounds", 7, "how often each contender has its turn")
	stretch  = flag.Duration("stretch", 1500*time.Millisecond, "how long a turn sends by TCP")
	calls    = flag.Int("calls", 2000, "how many round trips a turn makes by UDP, and as many by TCP")
	idle     = flag.Duration("idle", 20*time.Second, "how long an agent is watched doing nothing")
	connects = flag.Int("connects", 2000, "how many connections are made to ClusterIPs, and as many to the pod behind them")
	output   = flag.String("figures", "../../../.dev/bench-network.json", "where to write the figures")
)

// insideEnv says that this process stands in its own network namespace.
const insideEnv = "BENCH_NETWORK_INSIDE"

// bin has the programs.
var bin string

var report *figures.Report

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		os.Exit(m.Run())
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-network:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if bin, err = filepath.Abs("../../../bin"); err != nil {
		return 0, err
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root for network namespaces")
	}
	if os.Getenv(insideEnv) == "" {
		return inside()
	}
	report = figures.New(*strict)
	code = m.Run()
	return code, report.Write(*output)
}

// inside runs this process once more, in a network namespace.
func inside() (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// has skips a benchmark that lacks a program.
func has(b *testing.B, programs ...string) {
	b.Helper()
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(bin, p)); err == nil {
			continue
		}
		if _, err := exec.LookPath(p); err != nil {
			b.Skipf("needs %s", p)
		}
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// await polls until ok; what it waits for happens in other processes.
func await(b *testing.B, what string, limit time.Duration, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("no %s after %s", what, limit)
		}
	}
}

// us is in microseconds, p50 and p99.
func us(list []time.Duration) string {
	return fmt.Sprintf("p50 %d µs, p99 %d µs", figures.Quantile(list, 0.5).Microseconds(), figures.Quantile(list, 0.99).Microseconds())
}
