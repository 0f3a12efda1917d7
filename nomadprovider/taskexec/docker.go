package taskexec

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/utils/lru"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
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
// process, and waits for a line before it starts the command: a call that ends
// without that sign has not started it and is made again. And it outlives the
// command, but says at once that it has ended and how, which is all that is waited
// for. Containers without a shell are left with the fault.
const (
	execSign  = "nomad-kubelet-exec"
	execTries = 5
	// shellsKept is of how many containers it is remembered that they have no
	// shell.
	shellsKept = 4096
	// heldBytes bounds what is kept of a call that has not given the sign.
	heldBytes = 64 << 10
)

// errCut is returned when the sign of the end has not come.
var errCut = errors.New("the end of the command's output is lost: Nomad's docker driver has ended the call before it was delivered (hashicorp/nomad#27146)")

// execScript is the shell's. The sign of the command's end stands in it in two
// parts: a command that shows command lines, its own shell's among them, does not
// say it. Without a terminal both outputs end with it.
//
// The shell outlives the command until its own input ends, which is when the sign
// has come and with it all output. So a command without input gets an empty one.
// Where the input has ended before, and on a terminal, which has no such end, the
// shell waits for a while.
func execScript(sign string, input, tty bool) string {
	half := len(sign) / 2
	command := `(exec "$@")`
	if !input && !tty {
		command += ` </dev/null`
	}
	end := `echo "${__nk_end}` + sign[half:] + ` $__nk"`
	// Some sleeps take whole seconds only, and some containers have none.
	wait := `sleep 0.2 2>/dev/null || sleep 1 2>/dev/null`
	if !tty {
		end += `; ` + end + ` >&2`
		wait = `while read -r __nk_line; do :; done`
	}
	if !tty && input {
		wait += `; sleep 3 2>/dev/null`
	}
	return `echo ` + execSign + ` $$; __nk_end=` + sign[:half] + `; read -r __nk || exit 0; ` + command + `; __nk=$?; ` + end + `; ` + wait + `; exit $__nk`
}

// errNotStarted is returned when no try gave the sign.
var errNotStarted = errors.New("the command was not started: Nomad's docker driver ended the call before it could (hashicorp/nomad#27146); try again")

// around is what stands around a command: it gives a sign, waits for a line, and
// outlives the command.
type around struct {
	// exec and check make what comes before the words of a command and of a check,
	// after which comes the check's sign. sign is that of the command's end.
	exec  func(sign string, input, tty bool) []string
	check []string
	// ends says that the end of a command is told by its sign, and that a command
	// without input needs none that ends.
	ends bool
	// bare says that a container without it gets the command as it is.
	bare bool
}

// inContainer is a shell.
var inContainer = around{
	exec: func(sign string, input, tty bool) []string {
		return []string{"sh", "-c", execScript(sign, input, tty), "sh"}
	},
	check: []string{"sh", "-c", checkScript},
	ends:  true,
	bare:  true,
}

// inVM is the companion, which asks the guest's agent, and toConsole is the way to
// the guest's console.
var (
	inVM = around{
		exec: func(string, bool, bool) []string {
			return []string{companion, "vm-exec", translate.VMAgent, translate.VMPodDisk, execSign}
		},
		check: []string{companion, "vm-check", translate.VMAgent, translate.VMPodDisk},
	}
	toConsole = around{
		exec: func(string, bool, bool) []string {
			return []string{companion, "vm-console", translate.VMConsole, execSign}
		},
	}
)

const companion = "/companion"

// command is one call of Nomad's exec API.
type command func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (code int, err error)

// dockerExec runs commands in docker containers.
type dockerExec struct {
	noShell *lru.Cache // by allocation and task
}

func newDockerExec() *dockerExec { return &dockerExec{noShell: lru.New(shellsKept)} }

// run runs argv at most once. key names the container. There may be no input.
func (d *dockerExec) run(ctx context.Context, key string, run command, w around, argv []string, in io.Reader, out, errOut io.Writer, tty bool) (int, error) {
	if _, without := d.noShell.Get(key); without {
		return run(ctx, argv, orEmpty(in), out, errOut)
	}
	if !w.ends {
		in = orEmpty(in)
	}
	for range execTries {
		h := newHandshake(ctx, in, out, errOut, tty)
		wrapped := slices.Concat(w.exec(h.sign, in != nil, tty), argv)
		code, err := run(h.ctx, wrapped, h, writer(h.stdout), writer(h.stderr))
		h.cancel()
		if exit, ended := h.exit(); ended {
			return exit, nil
		}
		switch {
		case h.hasStarted() && ctx.Err() != nil:
			go d.hangUp(context.WithoutCancel(ctx), run, h.pid)
			return code, err
		case w.ends && h.hasStarted() && err == nil && code == 0 && !tty:
			return 0, errCut
		case h.hasStarted() || err != nil:
			return code, err
		case w.bare && (code == 126 || code == 127): // Docker found no sh
			d.noShell.Add(key, true)
			return run(ctx, argv, orEmpty(in), out, errOut)
		case code != 0:
			h.release()
			return code, nil
		}
	}
	return 0, errNotStarted
}

func orEmpty(in io.Reader) io.Reader {
	if in == nil {
		return bytes.NewReader(nil)
	}
	return in
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// handshake stands between a client and the script. Until the command starts it
// holds back output, and input for as long; when it has ended, it ends the call.
type handshake struct {
	ctx         context.Context // of this try
	cancel      context.CancelFunc
	in          io.Reader
	out, errOut io.Writer
	tty         bool
	started     chan struct{}
	sign        string // of the command's end
	pid         int    // of the shell, in the container; read once started

	mu            sync.Mutex
	held, heldErr []byte
	end, endErr   exitSign
	// echo is what a terminal still gives back of the line that was sent.
	echo string

	sent bool // only Read
}

func newHandshake(ctx context.Context, in io.Reader, out, errOut io.Writer, tty bool) *handshake {
	h := &handshake{in: in, out: out, errOut: errOut, tty: tty, started: make(chan struct{}), sign: execSign + "-" + rand.Text()}
	h.ctx, h.cancel = context.WithCancel(ctx)
	h.end.sign, h.endErr.sign = []byte(h.sign), []byte(h.sign)
	return h
}

// exit is how the command has ended, if that was said. Otherwise what may have
// been the beginning of that was output, and is handed on.
func (h *handshake) exit() (code int, ended bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over() {
		return h.end.code, true
	}
	for _, x := range []struct {
		end *exitSign
		out io.Writer
	}{{&h.end, h.out}, {&h.endErr, h.errOut}} {
		if p := x.end.rest(); len(p) > 0 {
			_, _ = x.out.Write(p) // the call has ended by itself
		}
	}
	return 0, false
}

// over says whether all output of the command has come.
func (h *handshake) over() bool { return h.end.seen && (h.tty || h.endErr.seen) }

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
	if h.sent && h.in != nil {
		return h.in.Read(p)
	}
	if h.sent {
		<-h.ctx.Done()
		return 0, io.EOF
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
	if err == nil {
		_, err = h.passErr(h.heldErr)
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
	return n, h.put(&h.end, h.out, p)
}

// passErr writes what the command says to stderr.
func (h *handshake) passErr(p []byte) (int, error) { return len(p), h.put(&h.endErr, h.errOut, p) }

// put writes output without the sign of its end, and ends the call after both.
func (h *handshake) put(end *exitSign, out io.Writer, p []byte) error {
	if p = end.take(p); len(p) > 0 {
		if _, err := out.Write(p); err != nil {
			return err
		}
	}
	if h.over() {
		h.cancel()
	}
	return nil
}

func (h *handshake) stderr(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hasStarted() {
		return h.passErr(p)
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
