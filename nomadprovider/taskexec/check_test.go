package taskexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// shells are what containers may have as sh.
func shells(t *testing.T) map[string]command {
	t.Helper()
	out := map[string]command{"sh": shell}
	for name, argv := range map[string][]string{"bash": {"bash"}, "dash": {"dash"}, "busybox": {"busybox", "sh"}} {
		if _, err := exec.LookPath(argv[0]); err == nil {
			out[name] = func(ctx context.Context, rest []string, in io.Reader, o, e io.Writer) (int, error) {
				return shell(ctx, append(append([]string{}, argv...), rest[1:]...), in, o, e)
			}
		}
	}
	return out
}

// shell runs commands here, as a driver does in a container.
func shell(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = out, errOut
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() { _, _ = io.Copy(stdin, in); stdin.Close() }()
	err = cmd.Wait()
	if x := (*exec.ExitError)(nil); errors.As(err, &x) {
		return x.ExitCode(), nil
	}
	return 0, err
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		argv []string
		code int
		out  string
	}{
		"success":           {[]string{"true"}, 0, ""},
		"failure":           {[]string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 3, "out\nerr\n"},
		"no end of line":    {[]string{"printf", "a b"}, 0, "a b"},
		"no input":          {[]string{"cat"}, 0, ""},
		"no such command":   {[]string{"/none"}, 127, ""},
		"long":              {[]string{"sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; exit 2"}, 2, strings.Repeat("x", 1000)},
		"killed":            {[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		"odd words":         {[]string{"printf", "%s", `a "b" $c`}, 0, `a "b" $c`},
		"does not fake one": {[]string{"echo", execSign + " 0"}, 0, execSign + " 0\n"},
	} {
		for sh, run := range shells(t) {
			t.Run(name+" in "+sh, func(t *testing.T) {
				code, out, err := newDockerExec().check(t.Context(), "k", run, inContainer, c.argv, 5*time.Second, 1000)
				if name == "no such command" {
					out = nil // the shell's own words
				}
				if err != nil || code != c.code || string(out) != c.out {
					t.Errorf("%d, %.60q, %v", code, out, err)
				}
			})
		}
	}
}

// A command that takes too long is killed.
func TestCheckTimeout(t *testing.T) {
	for sh, run := range shells(t) {
		t.Run(sh, func(t *testing.T) {
			mark := fmt.Sprint(10_000_000 + rand.IntN(10_000_000)) // seconds that nobody else sleeps
			code, _, err := newDockerExec().check(t.Context(), "k", run, inContainer, []string{"sleep", mark}, 200*time.Millisecond, 100)
			if code != 0 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%d, %v", code, err)
			}
			for range 100 {
				if exec.Command("pgrep", "-f", "sleep "+mark+"$").Run() != nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Error("the command still runs")
		})
	}
}

// A call that ends before the command has started is made again, and one that
// finds no shell is remembered.
func TestCheckStartsOnce(t *testing.T) {
	calls := 0
	d := newDockerExec()
	flaky := func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		if calls++; calls < 3 {
			return 0, nil
		}
		return shell(ctx, argv, in, out, errOut)
	}
	if code, out, err := d.check(t.Context(), "k", flaky, inContainer, []string{"sh", "-c", "echo hi; exit 4"}, time.Second, 100); code != 4 || string(out) != "hi\n" || err != nil || calls != 3 {
		t.Errorf("%d, %q, %v after %d calls", code, out, err, calls)
	}
	var ran []string
	bareOnly := func(_ context.Context, argv []string, _ io.Reader, out, _ io.Writer) (int, error) {
		ran = append(ran, argv[0])
		if argv[0] == "sh" {
			_, _ = io.WriteString(out, "exec: \"sh\": not found")
			return 127, nil
		}
		_, _ = io.WriteString(out, "hi")
		return 5, nil
	}
	for range 2 {
		if code, out, err := d.check(t.Context(), "other", bareOnly, inContainer, []string{"app"}, time.Second, 1); code != 5 || string(out) != "h" || err != nil {
			t.Errorf("%d, %q, %v", code, out, err)
		}
	}
	if got := strings.Join(ran, " "); got != "sh app app" {
		t.Errorf("ran %s", got)
	}
}

func TestCheckErrors(t *testing.T) {
	broken := errors.New("no route")
	none := func(context.Context, []string, io.Reader, io.Writer, io.Writer) (int, error) { return 0, broken }
	if _, _, err := newDockerExec().check(t.Context(), "k", none, inContainer, []string{"app"}, time.Second, 1); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	never := func(context.Context, []string, io.Reader, io.Writer, io.Writer) (int, error) { return 0, nil }
	if _, _, err := newDockerExec().check(t.Context(), "k", never, inContainer, []string{"app"}, time.Second, 1); !errors.Is(err, errNotStarted) {
		t.Errorf("%v", err)
	}
	half := func(_ context.Context, argv []string, _ io.Reader, out, _ io.Writer) (int, error) {
		_, _ = io.WriteString(out, argv[3]+"\npart")
		return 0, nil
	}
	if _, out, err := newDockerExec().check(t.Context(), "k", half, inContainer, []string{"app"}, time.Second, 100); err == nil || string(out) != "part" {
		t.Errorf("%q, %v", out, err)
	}
	slow := func(ctx context.Context, _ []string, _ io.Reader, _, _ io.Writer) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if _, _, err := bare(t.Context(), slow, nil, 10*time.Millisecond, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
