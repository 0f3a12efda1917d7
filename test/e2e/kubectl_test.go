package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// idle is a script that does nothing until it is told to end.
const idle = `trap 'exit 0' TERM; sleep 3600 & wait`

// background is a kubectl that goes on while the test does.
type background struct {
	*exec.Cmd
	args []string
	out  *firstSeen
	done chan error // one value, at its end
}

// startKubectl starts kubectl with that input and is not told when it ends. What
// runs on is killed with the test.
func startKubectl(t *testing.T, in io.Reader, args ...string) *background {
	t.Helper()
	b := &background{Cmd: exec.Command(filepath.Join(binDir(), "kubectl"), args...), args: args, out: &firstSeen{then: func() {}}, done: make(chan error, 1)}
	b.Env = append(os.Environ(), "KUBECONFIG="+cluster.KubeconfigFile())
	b.Stdin, b.Stdout, b.Stderr = in, b.out, b.out
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { b.done <- b.Wait() }()
	t.Cleanup(func() { _ = b.Process.Kill() })
	return b
}

// says waits until it has said that.
func (b *background) says(t *testing.T, what string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("kubectl %s says %q", strings.Join(b.args, " "), what), func() error {
		b.out.mu.Lock()
		defer b.out.mu.Unlock()
		if !strings.Contains(b.out.buf.String(), what) {
			return fmt.Errorf("it says %q", b.out.buf.String())
		}
		return nil
	})
}

// ends waits for its end.
func (b *background) ends(t *testing.T, limit time.Duration) error {
	t.Helper()
	select {
	case err := <-b.done:
		return err
	case <-time.After(limit):
		t.Errorf("kubectl %s has not ended within %s", strings.Join(b.args, " "), limit)
		return nil
	}
}

// exitCode of a program, -1 if it has none.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// terminal runs kubectl as in a terminal, and types in answer to what it shows.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd
	mu     sync.Mutex
	shown  bytes.Buffer
	done   chan error
}

func openTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd := exec.Command(filepath.Join(binDir(), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.KubeconfigFile())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term := &terminal{master: master, cmd: cmd, done: make(chan error, 1)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.shown.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return // the other side is closed
			}
		}
	}()
	go func() { term.done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = master.Close()
	})
	return term
}

func (term *terminal) shows(t *testing.T, what string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("the terminal shows %q", what), func() error {
		term.mu.Lock()
		defer term.mu.Unlock()
		if !strings.Contains(term.shown.String(), what) {
			return fmt.Errorf("it shows %q", term.shown.String())
		}
		return nil
	})
}

// kill ends kubectl at once, as when its machine is gone.
func (term *terminal) kill(t *testing.T) {
	t.Helper()
	if err := term.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
}

func (term *terminal) types(t *testing.T, what string) {
	t.Helper()
	if _, err := io.WriteString(term.master, what); err != nil {
		t.Fatal(err)
	}
}
