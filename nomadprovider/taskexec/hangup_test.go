package taskexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// session runs commands here in sessions of their own, as a container's are, and
// keeps them when the caller goes, as Nomad does.
func session(t *testing.T, sh []string) command {
	return func(_ context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		if argv[0] == "sh" {
			argv = append(append([]string{}, sh...), argv[1:]...)
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		cmd.Stdout, cmd.Stderr = out, errOut
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		go func() { _, _ = io.Copy(stdin, in); stdin.Close() }()
		err = cmd.Wait()
		if x := (*exec.ExitError)(nil); errors.As(err, &x) {
			return x.ExitCode(), nil
		}
		return 0, err
	}
}

// A command whose caller goes is told by the end of its input and by a signal.
func TestHangUp(t *testing.T) {
	// Under nohup the commands would ignore the signal, too; one that is caught here has
	// its default in them.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	for _, sh := range [][]string{{"sh"}, {"bash"}, {"dash"}, {"busybox", "sh"}} {
		if _, err := exec.LookPath(sh[0]); err != nil {
			continue
		}
		mark := fmt.Sprint(10_000_000 + rand.IntN(10_000_000)) // seconds that nobody else sleeps
		runs := func() bool { return exec.Command("pgrep", "-f", "^sleep "+mark+"$").Run() == nil }
		for name, script := range map[string]string{
			"deaf to its input": "sleep " + mark,
			"with a child":      "sleep " + mark + " & wait",
			"reads":             "cat; exec sleep " + mark,
		} {
			t.Run(name+" in "+strings.Join(sh, " "), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				in, typed := io.Pipe()
				defer typed.Close()
				begun := make(chan struct{}, 1)
				out := writer(func(p []byte) (int, error) { begun <- struct{}{}; return len(p), nil })
				go func() {
					_, err := newDockerExec().run(ctx, "k", lingering(session(t, sh)), inContainer, []string{"sh", "-c", "echo begun; " + script}, in, out, io.Discard, false)
					ended <- err
				}()
				<-begun
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("it ended with %v", err)
				}
				for range 100 {
					if !runs() {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
				t.Error("the command still runs")
			})
		}
	}
}

// Input that never ends, and a call that does not heed it, hold nobody up: the call
// is cut off after a while.
func TestLingering(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cut := make(chan struct{})
	run := lingering(func(ctx context.Context, _ []string, in io.Reader, _, _ io.Writer) (int, error) {
		if _, err := io.ReadAll(in); err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		close(cut)
		return 0, ctx.Err()
	})
	in, typed := io.Pipe()
	defer typed.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	begin := time.Now()
	if _, err := run(ctx, nil, in, io.Discard, io.Discard); !errors.Is(err, context.Canceled) || time.Since(begin) > time.Second {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	select {
	case <-cut:
	case <-time.After(2 * hangUpPatience):
		t.Error("the call goes on")
	}
	ok := lingering(func(_ context.Context, _ []string, in io.Reader, out, _ io.Writer) (int, error) {
		_, err := io.Copy(out, in)
		return 7, err
	})
	var got strings.Builder
	if code, err := ok(t.Context(), nil, strings.NewReader("hello"), &got, io.Discard); code != 7 || err != nil || got.String() != "hello" {
		t.Errorf("%d, %v, %q", code, err, got.String())
	}
}
