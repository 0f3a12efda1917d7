package taskexec

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/nomad/api"
)

// checkScript stands around a command whose exit code and output are wanted. As
// execScript it gives a sign ($0) and waits for a line, and it also tells the
// exit code itself, so that nobody waits until Nomad has seen the end. When its
// input ends, since nobody wants to know any more, it kills the command: Docker
// does not.
const checkScript = `echo "$0"; read -r __nk || exit 0; exec 3<&0; ` +
	`(exec "$@") </dev/null 2>&1 3<&- & __nk=$!; ` +
	`(while read -r __nk_line; do :; done; kill -9 $__nk) <&3 >/dev/null 2>&1 & __nk_watch=$!; ` +
	`wait $__nk; __nk=$?; kill -9 $__nk_watch 2>/dev/null; echo "$0 $__nk"; ` +
	`sleep 0.2 2>/dev/null || sleep 1 2>/dev/null`

// hangUpPatience is how long a call whose input was closed is left open: Nomad
// hands on the end of the input, but not that the caller has gone
// (command/agent/alloc_endpoint.go, execStreamImpl).
const hangUpPatience = 5 * time.Second

// startPatience is how long a check may take to start.
const startPatience = 30 * time.Second

// Check runs a command without input and returns its exit code and the first
// limit bytes of its output, both streams together. The error is
// context.DeadlineExceeded if it has not ended within timeout of its start; it
// is then killed, if the container has a shell. Handshake, streams and terminal
// of c are not used.
func (r *Runner) Check(ctx context.Context, c Command, timeout time.Duration, limit int) (code int, output []byte, err error) {
	alloc := c.alloc()
	run := func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		return r.nomad.Allocations().Exec(ctx, alloc, c.task(), false, argv, in, out, errOut, nil, &api.QueryOptions{Namespace: c.Namespace})
	}
	if w, key := c.around(); w != nil {
		code, output, err = r.docker.check(ctx, key, run, *w, c.Argv, timeout, limit)
	} else {
		code, output, err = bare(ctx, run, c.Argv, timeout, limit)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return code, output, fmt.Errorf("exec in task %q of allocation %s: %w", c.Task, c.AllocID, err)
	}
	return code, output, err
}

// bare runs a command without a script around it.
func bare(ctx context.Context, run command, argv []string, timeout time.Duration, limit int) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	k := &check{ctx: ctx, limit: limit}
	code, err := run(ctx, argv, bytes.NewReader(nil), writer(k.keep), writer(k.keep))
	out, _, _ := k.result()
	if ctx.Err() != nil {
		return 0, out, ctx.Err()
	}
	return code, out, err
}

func (d *dockerExec) check(ctx context.Context, key string, run command, w around, argv []string, timeout time.Duration, limit int) (int, []byte, error) {
	for range execTries {
		if _, without := d.noShell.Get(key); without {
			return bare(ctx, run, argv, timeout, limit)
		}
		k := newCheck(ctx, limit)
		code, err := k.follow(ctx, run, w, argv, timeout)
		out, exit, ended := k.result()
		k.hangUp()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return 0, out, err
		case ended:
			return exit, out, nil
		case err != nil:
			return 0, out, err
		case k.hasBegun():
			return 0, out, errors.New("the call ended before the command")
		case w.bare && (code == 126 || code == 127): // Docker found no sh
			d.noShell.Add(key, true)
		case code != 0:
			return code, out, nil
		}
	}
	return 0, nil, errNotStarted
}

// check follows one call of checkScript.
type check struct {
	ctx    context.Context
	cancel context.CancelFunc
	sign   string
	limit  int
	over   chan struct{} // closed when nobody wants to know any more
	begun  chan struct{} // closed when the sign was seen
	done   chan struct{} // closed when the exit code was seen

	mu    sync.Mutex
	head  []byte // the first limit bytes
	total int    // bytes since the command began
	tail  []byte // the last bytes, in which the exit code is looked for
	ended bool
	code  int

	sent bool // only Read
}

func newCheck(ctx context.Context, limit int) *check {
	k := &check{limit: limit, sign: execSign + "-" + rand.Text(), over: make(chan struct{}), begun: make(chan struct{}), done: make(chan struct{})}
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return k
}

// hangUp closes the call's input, at which the script ends, and later the call.
func (k *check) hangUp() {
	close(k.over)
	time.AfterFunc(hangUpPatience, k.cancel)
}

// follow returns when the exit code is known, the time is over, or the call has
// ended for another reason, with what it said.
func (k *check) follow(ctx context.Context, run command, w around, argv []string, timeout time.Duration) (int, error) {
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		defer k.cancel()
		code, err := run(k.ctx, slices.Concat(w.check, []string{k.sign}, argv), k, writer(k.stdout), io.Discard)
		ended <- end{code, err}
	}()
	begun, timer := k.begun, time.NewTimer(startPatience)
	defer timer.Stop()
	for {
		select {
		case <-begun:
			begun = nil
			timer.Reset(timeout)
		case <-k.done:
			return 0, nil
		case e := <-ended:
			return e.code, e.err
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-timer.C:
			if begun != nil {
				return 0, fmt.Errorf("the command has not started within %s", startPatience)
			}
			return 0, context.DeadlineExceeded
		}
	}
}

func (k *check) hasBegun() bool {
	select {
	case <-k.begun:
		return true
	default:
		return false
	}
}

func (k *check) result() (output []byte, code int, ended bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return bytes.Clone(k.head), k.code, k.ended
}

// Read gives the line that starts the command; the input ends with the check.
func (k *check) Read(p []byte) (int, error) {
	if !k.sent {
		select {
		case <-k.begun:
			k.sent = true
			p[0] = '\n'
			return 1, nil
		case <-k.over:
			return 0, io.EOF
		case <-k.ctx.Done():
			return 0, io.EOF
		}
	}
	select {
	case <-k.over:
	case <-k.ctx.Done():
	}
	return 0, io.EOF
}

// keep takes output of the command.
func (k *check) keep(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.head = append(k.head, p[:min(len(p), k.limit-len(k.head))]...)
	return len(p), nil
}

func (k *check) stdout(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(p)
	if !k.hasBegun() {
		k.tail = hold(k.tail, p)
		line, rest, whole := bytes.Cut(k.tail, []byte("\n"))
		if !whole || string(line) != k.sign {
			return n, nil
		}
		p, k.tail = bytes.Clone(rest), nil
		close(k.begun)
	}
	if k.ended {
		return n, nil
	}
	k.head = append(k.head, p[:min(len(p), k.limit-len(k.head))]...)
	k.total += len(p)
	k.tail = append(k.tail, p...)
	k.end()
	if keep := 2 * len(k.sign); len(k.tail) > keep {
		k.tail = append(k.tail[:0], k.tail[len(k.tail)-keep:]...)
	}
	return n, nil
}

// end looks for the sign with the exit code behind it.
func (k *check) end() {
	i := bytes.Index(k.tail, []byte(k.sign+" "))
	if i < 0 {
		return
	}
	word, _, whole := bytes.Cut(k.tail[i+len(k.sign)+1:], []byte("\n"))
	code, err := strconv.Atoi(string(word))
	if !whole || err != nil {
		return
	}
	k.head = k.head[:min(len(k.head), k.total-len(k.tail)+i)]
	k.ended, k.code = true, code
	close(k.done)
}
