package taskexec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"

	"k8s.io/utils/lru"
)

// Nomad's docker driver asks Docker every 100 ms whether a command still runs,
// the first time at once, and stops copying when it does not
// (drivers/docker/driver.go, ExecTaskStreaming; hashicorp/nomad#27146). So it
// loses the output of a command that ends just before it is asked, and it takes
// a command that has not started yet for one that has ended well: about two of
// a hundred came back empty, with exit code 0, having run to no avail or not at
// all.
//
// The remedy is a shell around the command. It says that it is there, as which
// process, and waits for a line before it starts the command: a call that ends without that sign
// has not started it and is made again. And it outlives the command by 0.2 s.
// Containers without a shell are left with the fault.
const (
	execSign   = "nomad-kubelet-exec"
	execScript = `echo ` + execSign + ` $$; read -r __nk || exit 0; (exec "$@"); __nk=$?; ` +
		// Some sleeps take whole seconds only, and some containers have none.
		`sleep 0.2 2>/dev/null || sleep 1 2>/dev/null; exit $__nk`
	execTries = 5
	// shellsKept is of how many containers it is remembered that they have no
	// shell.
	shellsKept = 4096
	// heldBytes bounds what is kept of a call that has not given the sign.
	heldBytes = 64 << 10
)

// errNotStarted is returned when no try gave the sign.
var errNotStarted = errors.New("the command was not started: Nomad's docker driver ended the call before it could (hashicorp/nomad#27146); try again")

// command is one call of Nomad's exec API.
type command func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (code int, err error)

// dockerExec runs commands in docker containers.
type dockerExec struct {
	noShell *lru.Cache // by allocation and task
}

func newDockerExec() *dockerExec { return &dockerExec{noShell: lru.New(shellsKept)} }

// run runs argv at most once. key names the container.
func (d *dockerExec) run(ctx context.Context, key string, run command, argv []string, in io.Reader, out, errOut io.Writer, tty bool) (int, error) {
	if _, without := d.noShell.Get(key); without {
		return run(ctx, argv, in, out, errOut)
	}
	wrapped := append([]string{"sh", "-c", execScript, "sh"}, argv...)
	for range execTries {
		try, cancel := context.WithCancel(ctx)
		h := &handshake{ctx: try, in: in, out: out, errOut: errOut, started: make(chan struct{}), tty: tty}
		code, err := run(try, wrapped, h, writer(h.stdout), writer(h.stderr))
		cancel()
		switch {
		case h.hasStarted() && ctx.Err() != nil:
			go d.hangUp(context.WithoutCancel(ctx), run, h.pid)
			return code, err
		case h.hasStarted() || err != nil:
			return code, err
		case code == 126 || code == 127: // Docker found no sh
			d.noShell.Add(key, true)
			return run(ctx, argv, in, out, errOut)
		case code != 0:
			h.release()
			return code, nil
		}
	}
	return 0, errNotStarted
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// handshake stands between a client and the script until the command starts:
// it holds back output, and input for as long.
type handshake struct {
	ctx         context.Context // of this try
	in          io.Reader
	out, errOut io.Writer
	tty         bool
	started     chan struct{}
	pid         int // of the shell, in the container; read once started

	mu            sync.Mutex
	held, heldErr []byte
	// echo is what a terminal still gives back of the line that was sent.
	echo string

	sent bool // only Read
}

func (h *handshake) hasStarted() bool {
	select {
	case <-h.started:
		return true
	default:
		return false
	}
}

// Read gives the line that starts the command, then the client's input.
func (h *handshake) Read(p []byte) (int, error) {
	if h.sent {
		return h.in.Read(p)
	}
	select {
	case <-h.started:
		h.sent = true
		p[0] = '\n'
		return 1, nil
	case <-h.ctx.Done():
		return 0, io.EOF
	}
}

func (h *handshake) stdout(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hasStarted() {
		return h.pass(p)
	}
	h.held = hold(h.held, p)
	line, rest, complete := bytes.Cut(h.held, []byte("\n"))
	word, pid, _ := strings.Cut(strings.TrimSuffix(string(line), "\r"), " ")
	if !complete || word != execSign {
		return len(p), nil
	}
	h.pid, _ = strconv.Atoi(pid) // 0 is hung up by nobody
	if h.tty {
		h.echo = "\r\n"
	}
	h.held = nil
	_, err := h.pass(rest)
	if err == nil && len(h.heldErr) > 0 {
		_, err = h.errOut.Write(h.heldErr)
	}
	close(h.started)
	return len(p), err
}

// pass writes output of the command itself.
func (h *handshake) pass(p []byte) (int, error) {
	n := len(p)
	for len(h.echo) > 0 && len(p) > 0 {
		if p[0] != h.echo[0] {
			h.echo = ""
			break
		}
		h.echo, p = h.echo[1:], p[1:]
	}
	if len(p) == 0 {
		return n, nil
	}
	if _, err := h.out.Write(p); err != nil {
		return 0, err
	}
	return n, nil
}

func (h *handshake) stderr(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hasStarted() {
		return h.errOut.Write(p)
	}
	h.heldErr = hold(h.heldErr, p)
	return len(p), nil
}

// release hands on what a call said that never gave the sign.
func (h *handshake) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _ = h.out.Write(h.held)
	_, _ = h.errOut.Write(h.heldErr)
}

func hold(held, p []byte) []byte {
	return append(held, p[:min(len(p), heldBytes-len(held))]...)
}
