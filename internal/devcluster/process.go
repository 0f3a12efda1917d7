package devcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mark is the environment variable that every process of a cluster carries.
const mark = "NOMAD_KUBELET_DEV"

// command is how to run a component.
type command struct {
	path string
	args []string
	env  []string // in addition to ours
}

// child is a process this program started, and so has to reap.
type child struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // why, once done is closed
}

func (c *Cluster) pidFile(name string) string { return filepath.Join(c.opts.Dir, "run", name+".pid") }

// LogFile is where the component of that name writes.
func (c *Cluster) LogFile(name string) string { return filepath.Join(c.opts.Dir, "logs", name+".log") }

// spawn starts a component in a session of its own, so that neither a closed
// terminal nor an interrupted `make` takes it along.
func (c *Cluster) spawn(name string, cmd command) (*child, error) {
	log, err := os.OpenFile(c.LogFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := exec.Command(cmd.path, cmd.args...)
	p.Dir = c.opts.Dir
	p.Stdout, p.Stderr = log, log
	p.Env = append(cleanEnv(), append([]string{mark + "=" + c.opts.Dir}, cmd.env...)...)
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ch := &child{pid: p.Process.Pid, done: make(chan struct{})}
	go func() {
		ch.err = p.Wait()
		close(ch.done)
	}()
	if err := os.WriteFile(c.pidFile(name), []byte(strconv.Itoa(ch.pid)+"\n"), 0o644); err != nil {
		return ch, err
	}
	c.mu.Lock()
	c.children[name] = ch
	c.mu.Unlock()
	// The kernel shows the environment a moment after the program has begun.
	for begin := time.Now(); !marked(ch.pid, c.opts.Dir) && alive(ch.pid) && time.Since(begin) < time.Second; {
		time.Sleep(time.Millisecond)
	}
	return ch, nil
}

// cleanEnv drops what would make a component behave otherwise than configured:
// a NOMAD_TOKEN of the user's real cluster, or AWS_CA_BUNDLE, over which Nomad's
// fingerprinter stumbles.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "NOMAD_"), strings.HasPrefix(name, "ETCD_"), strings.HasPrefix(name, "DOCKER_"),
			name == "AWS_CA_BUNDLE", name == "KUBECONFIG", name == "PATH":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "PATH="+searchPath())
}

// searchPath is PATH with the system directories that a user's PATH may lack.
func searchPath() string {
	return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
}

// pid tells the process of a component, or 0. A number that another program
// has been given since does not count.
func (c *Cluster) pid(name string) int {
	data, err := os.ReadFile(c.pidFile(name))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	if pid == 0 || !alive(pid) || !marked(pid, c.opts.Dir) {
		return 0
	}
	return pid
}

// alive is false for zombies, too: whoever adopted them may never reap them.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return len(rest) > 1 && rest[1] != 'Z' && rest[1] != 'X'
}

// marked tells whether a process carries the mark of the cluster in dir.
func marked(pid int, dir string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+mark+"="+dir+"\x00"))
}

// PID is a component's process, 0 if it does not run.
func (c *Cluster) PID(name string) int { return c.pid(name) }

// Running tells whether the component of that name runs.
func (c *Cluster) Running(name string) bool { return c.pid(name) != 0 }

// Kill ends a component as a crash would, and waits until it is gone.
func (c *Cluster) Kill(ctx context.Context, name string) error {
	return c.signal(ctx, name, syscall.SIGKILL, 10*time.Second)
}

// Stop asks a component to end, waits, and kills it when it does not.
func (c *Cluster) Stop(ctx context.Context, name string) error {
	if err := c.signal(ctx, name, syscall.SIGTERM, 20*time.Second); err == nil {
		return nil
	}
	return c.Kill(ctx, name)
}

// Signal sends a signal to a component, such as SIGSTOP to make it hang.
func (c *Cluster) Signal(name string, sig syscall.Signal) error {
	pid := c.pid(name)
	if pid == 0 {
		return fmt.Errorf("%s does not run", name)
	}
	return syscall.Kill(pid, sig)
}

func (c *Cluster) signal(ctx context.Context, name string, sig syscall.Signal, patience time.Duration) error {
	pid := c.pid(name)
	if pid == 0 {
		os.Remove(c.pidFile(name))
		return nil
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := waitGone(ctx, pid); err != nil {
		return fmt.Errorf("%s (process %d) did not end on %v: %w", name, pid, sig, err)
	}
	os.Remove(c.pidFile(name))
	return nil
}

// waitGone waits for the end of a process that need not be our child.
func waitGone(ctx context.Context, pid int) error {
	return poll(ctx, 20*time.Millisecond, func(context.Context) error {
		if alive(pid) {
			return fmt.Errorf("process %d runs", pid)
		}
		return nil
	})
}

// tail returns the last lines of a component's log.
func (c *Cluster) tail(name string, lines int) string {
	f, err := os.Open(c.LogFile(name))
	if err != nil {
		return ""
	}
	defer f.Close()
	const window = 16 << 10
	if st, err := f.Stat(); err == nil && st.Size() > window {
		_, _ = f.Seek(-window, 2)
	}
	var buf bytes.Buffer
	_, _ = buf.ReadFrom(f)
	all := strings.Split(strings.TrimSpace(buf.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
