package devcluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testCluster(t *testing.T) *Cluster {
	t.Helper()
	opts := Options{Dir: t.TempDir(), Timeout: 5 * time.Second}
	if err := opts.complete(); err != nil {
		t.Fatal(err)
	}
	c := newCluster(opts)
	for _, dir := range []string{"run", "logs"} {
		if err := os.MkdirAll(filepath.Join(opts.Dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestComponentThatEndsSaysWhy(t *testing.T) {
	c := testCluster(t)
	ch, err := c.spawn("broken", command{path: "/bin/sh", args: []string{"-c", "echo no such flag; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	err = c.ready(context.Background(), "broken", ch, func(context.Context) error { return os.ErrNotExist })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such flag") {
		t.Errorf("the error does not tell the reason: %v", err)
	}
}

func TestStopAndKill(t *testing.T) {
	c := testCluster(t)
	ctx := context.Background()
	for _, stop := range []func(context.Context, string) error{c.Stop, c.Kill} {
		if _, err := c.spawn("sleeper", command{path: "/bin/sleep", args: []string{"60"}}); err != nil {
			t.Fatal(err)
		}
		if !c.Running("sleeper") {
			t.Fatal("does not run after spawn")
		}
		if err := stop(ctx, "sleeper"); err != nil {
			t.Fatal(err)
		}
		if c.Running("sleeper") {
			t.Error("runs after it was stopped")
		}
	}
	if err := c.Stop(ctx, "sleeper"); err != nil {
		t.Errorf("stopping what does not run: %v", err)
	}
}

func TestForeignProcessIsNotOurs(t *testing.T) {
	c := testCluster(t)
	// Process 1 stands for a number that the system has given away again.
	if err := os.WriteFile(c.pidFile("stale"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c.Running("stale") {
		t.Error("a process without the mark is taken for ours")
	}
}

func TestKillLeftovers(t *testing.T) {
	c := testCluster(t)
	ch, err := c.spawn("orphan", command{path: "/bin/sleep", args: []string{"60"}})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(c.pidFile("orphan"))
	c.killLeftovers(context.Background())
	select {
	case <-ch.done:
	case <-time.After(5 * time.Second):
		t.Error("a process without a pid file survives")
	}
}
