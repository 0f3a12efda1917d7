package companion

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// realAgent runs Debian's qemu-guest-agent on this machine, on a socket of its
// own. Like qemu it serves one client at a time.
func realAgent(t *testing.T) (socket string) {
	t.Helper()
	program, err := exec.LookPath("qemu-ga")
	if err != nil {
		t.Skip("qemu-ga is not installed")
	}
	dir := t.TempDir()
	socket = filepath.Join(dir, "qa.sock")
	cmd := exec.Command(program, "-m", "unix-listen", "-p", socket, "-t", dir, "-f", filepath.Join(dir, "pid"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the agent does not listen")
	return ""
}

func TestGuestCommand(t *testing.T) {
	socket := realAgent(t)
	large := bytes.Repeat([]byte{0, 1, 0xff, '\n'}, 256<<10)
	for _, tc := range []struct {
		name     string
		argv     []string
		in       []byte
		code     int
		out, err string
	}{
		{"output", []string{"echo", "hi"}, nil, 0, "hi\n", ""},
		{"both streams and a code", []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, nil, 7, "out\n", "err\n"},
		{"input", []string{"cat"}, large, 0, string(large), ""},
		{"no input", []string{"cat"}, nil, 0, "", ""},
		{"a signal", []string{"sh", "-c", "kill -9 $$"}, nil, 137, "", ""},
		{"odd words", []string{"printf", "%s|", `a "b" $c \`, ""}, nil, 0, `a "b" $c \||`, ""},
	} {
		var out, errOut bytes.Buffer
		code, err := GuestCommand(t.Context(), socket, tc.argv, nil, tc.in, &out, &errOut)
		if code != tc.code || err != nil || out.String() != tc.out || errOut.String() != tc.err {
			t.Errorf("%s: %d, %v, %.40q, %.40q", tc.name, code, err, out.String(), errOut.String())
		}
	}
	if _, err := GuestCommand(t.Context(), socket, []string{"/none"}, nil, nil, &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// Commands side by side share the agent's only place.
func TestGuestCommandsAtOnce(t *testing.T) {
	socket := realAgent(t)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			var out bytes.Buffer
			if code, err := GuestCommand(t.Context(), socket, []string{"sh", "-c", "sleep 0.3; echo done"}, nil, nil, &out, &out); code != 0 || err != nil || out.String() != "done\n" {
				t.Errorf("%d, %v, %q", code, err, out.String())
			}
		})
	}
	group.Wait()
}

// A command nobody waits for any more is killed.
func TestGuestCommandCancelled(t *testing.T) {
	socket := realAgent(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	_, err := GuestCommand(ctx, socket, []string{"sh", "-c", "echo $$ >" + pidFile + "; exec sleep 1000"}, nil, nil, &bytes.Buffer{}, &bytes.Buffer{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat"); err != nil || bytes.Contains(state, []byte(") Z ")) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("it still runs")
}

// A guest that has no agent does not answer, and that is what is said.
func TestGuestWithoutAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qa.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.Close()
		}
	}()
	if _, err := GuestCommand(t.Context(), socket, []string{"id"}, nil, nil, &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, errSilent) {
		t.Errorf("%v", err)
	}
}

// The frame around a command is what nomadprovider/taskexec expects.
func TestGuestFrames(t *testing.T) {
	socket, disk := realAgent(t), filepath.Join(t.TempDir(), "none")
	var out, errOut bytes.Buffer
	if code := GuestExec(t.Context(), socket, disk, "SIGN", []string{"sh", "-c", "cat; exit 3"}, strings.NewReader("\nabc"), &out, &errOut); code != 3 || out.String() != "SIGN\nabc" {
		t.Errorf("%d %q %q", code, out.String(), errOut.String())
	}
	out.Reset()
	if code := GuestExec(t.Context(), socket, disk, "SIGN", []string{"echo", "no"}, strings.NewReader(""), &out, &errOut); code != 0 || out.String() != "SIGN\n" {
		t.Errorf("without an answer: %d %q", code, out.String())
	}
	out.Reset()
	in, end := net.Pipe()
	defer end.Close()
	go func() { _, _ = end.Write([]byte("\n")) }()
	GuestCheck(t.Context(), socket, disk, "SIGN", []string{"sh", "-c", "echo hi; exit 4"}, in, &out)
	if out.String() != "SIGN\nhi\nSIGN 4\n" {
		t.Errorf("%q", out.String())
	}
}
