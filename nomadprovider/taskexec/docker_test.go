package taskexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// local runs a command here, as a driver without faults would.
func local(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	pipe, err := c.StdinPipe()
	if err != nil {
		return 0, err
	}
	c.Stdout, c.Stderr = out, errOut
	if err := c.Start(); err != nil {
		return 127, nil
	}
	go func() { _, _ = io.Copy(pipe, in); _ = pipe.Close() }()
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// early is a driver that takes a command that has not started for one that
// ended well, so many times.
func early(times int, calls *int) command {
	return func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		*calls++
		if *calls <= times {
			return 0, nil
		}
		return local(ctx, argv, in, out, errOut)
	}
}

func TestDockerExec(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		early int
		argv  []string
		in    string
		none  bool
		code  int
		out   string
		err   string
		fails bool
	}{
		"output":                 {argv: []string{"echo", "hi"}, out: "hi\n"},
		"exit code":              {argv: []string{"sh", "-c", "echo oops >&2; exit 7"}, code: 7, err: "oops\n"},
		"input is the command's": {argv: []string{"cat"}, in: "a\nb\n", out: "a\nb\n"},
		"no input":               {argv: []string{"cat"}, none: true},
		"no builtins":            {argv: []string{"exit", "3"}, code: 127},
		"arguments as they are":  {argv: []string{"printf", "%s|", "a b", "$HOME", "'"}, out: "a b|$HOME|'|"},
		"ended before it began":  {early: 3, argv: []string{"sh", "-c", "echo once >> " + dir + "/ran; cat"}, in: "x", out: "x"},
		"never begins":           {early: 99, argv: []string{"echo", "hi"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			calls := 0
			var in io.Reader
			if !tc.none {
				in = strings.NewReader(tc.in)
			}
			code, err := newDockerExec().run(t.Context(), "k", early(tc.early, &calls), inContainer, tc.argv, in, &out, &errOut, false)
			if (err != nil) != tc.fails || code != tc.code || out.String() != tc.out || tc.err != "" && errOut.String() != tc.err {
				t.Errorf("code %d, %v, %q, %q", code, err, out.String(), errOut.String())
			}
		})
	}
	if b, _ := os.ReadFile(dir + "/ran"); string(b) != "once\n" {
		t.Errorf("the command ran: %q", b)
	}
}

// A container without a shell gets the command as it is, the next time at once.
func TestDockerExecWithoutShell(t *testing.T) {
	var ran [][]string
	run := func(_ context.Context, argv []string, _ io.Reader, out, _ io.Writer) (int, error) {
		ran = append(ran, argv)
		if argv[0] == "sh" {
			_, _ = io.WriteString(out, "OCI runtime exec failed: no sh\n")
			return 126, nil
		}
		_, _ = io.WriteString(out, "hi")
		return 0, nil
	}
	d := newDockerExec()
	for range 2 {
		var out bytes.Buffer
		if code, err := d.run(t.Context(), "k", run, inContainer, []string{"app"}, strings.NewReader(""), &out, io.Discard, false); code != 0 || err != nil || out.String() != "hi" {
			t.Errorf("%d, %v, %q", code, err, out.String())
		}
	}
	if len(ran) != 3 || !slices.Equal(ran[2], []string{"app"}) {
		t.Errorf("ran %v", ran)
	}
}

// The end is known from the output, both of it, and not waited for otherwise.
func TestDockerExecEnd(t *testing.T) {
	var over chan struct{}
	late := func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		go func() { defer close(over); _, _ = local(context.WithoutCancel(ctx), argv, in, out, errOut) }()
		<-ctx.Done()
		return 0, ctx.Err()
	}
	typed, _ := io.Pipe() // an input that is open still
	for _, in := range []io.Reader{typed, nil} {
		over = make(chan struct{})
		var out, errOut bytes.Buffer
		code, err := newDockerExec().run(t.Context(), "k", late, inContainer, []string{"sh", "-c", "printf out; printf err >&2; exit 3"}, in, &out, &errOut, false)
		if code != 3 || err != nil || out.String() != "out" || errOut.String() != "err" {
			t.Errorf("%d, %v, %q, %q", code, err, out.String(), errOut.String())
		}
		_ = typed.Close()
		<-over
	}
	// A command that shows its shell's command line does not say it.
	if sign := "nomad-kubelet-exec-ABC"; strings.Contains(execScript(sign, true, false), sign) {
		t.Error(execScript(sign, true, false))
	}
}

// A terminal ends lines its own way and gives back the line that starts the
// command, in pieces of any size.
func TestHandshakeOnTerminal(t *testing.T) {
	var out bytes.Buffer
	h := newHandshake(t.Context(), strings.NewReader(""), &out, io.Discard, true)
	r := iotest.OneByteReader(strings.NewReader(execSign + " 17\r\n\r\n\r\n$ "))
	if _, err := io.Copy(writer(h.stdout), r); err != nil || out.String() != "\r\n$ " || h.pid != 17 {
		t.Errorf("%v, %q, process %d", err, out.String(), h.pid)
	}
}
