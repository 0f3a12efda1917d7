package taskexec

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync/atomic"
	"time"
)

// lingering makes a call that outlives its context for a moment. Nomad's agent
// does not tell the client that a caller has gone: the session, and all that
// belongs to it on both, stays until the command ends or writes
// (command/agent/alloc_endpoint.go, forwardExecInput). It does hand on that the
// input has ended, so that is said first.
func lingering(run command) command {
	return func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		open, cancel := context.WithCancel(context.WithoutCancel(ctx))
		input, feed := io.Pipe()
		go func() {
			_, err := io.Copy(feed, in)
			if ctx.Err() != nil {
				err = nil // the caller's going is no failure of the input
			}
			_ = feed.CloseWithError(err)
		}()
		stop := context.AfterFunc(ctx, func() {
			_ = feed.Close()
			time.AfterFunc(hangUpPatience, cancel)
		})
		type end struct {
			code int
			err  error
		}
		ended := make(chan end, 1)
		go func() {
			defer cancel()
			defer stop()
			code, err := run(open, argv, input, out, errOut)
			_ = input.Close() // whoever still feeds it
			ended <- end{code, err}
		}()
		select {
		case e := <-ended:
			return e.code, e.err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// hangUpScript sends the signal of a terminal that is hung up to a command: to its
// process group, which is its own, since a container's commands are sessions of
// their own (runc, libcontainer/nsenter/nsexec.c). It says so, and outlives that a
// little, for the sake of the driver; see [execScript].
const hangUpScript = `kill -HUP "-$0" 2>/dev/null || kill -HUP "$0" 2>/dev/null; echo ` + execSign +
	`; sleep 0.2 2>/dev/null || sleep 1 2>/dev/null`

// hangUp ends the command of a caller that has gone, by the signal that tells it
// so: what is to outlive its caller ignores it (nohup). Without it the command,
// its exec session in Nomad, and the 10 questions a second that Nomad's docker
// driver asks about it, would stay as long as the command likes. The first process
// of the group, the shell around the command, is the leader of the session: with
// it the kernel hangs up the terminal, if there is one.
func (d *dockerExec) hangUp(ctx context.Context, run command, pid int) {
	if pid <= 0 {
		return
	}
	var told atomic.Bool
	hear := writer(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte(execSign)) {
			told.Store(true)
		}
		return len(p), nil
	})
	ctx, cancel := context.WithTimeout(ctx, hangUpPatience)
	defer cancel()
	for range execTries {
		// Once more does no harm; what does not run any more needs nothing.
		_, err := run(ctx, []string{"sh", "-c", hangUpScript, strconv.Itoa(pid)}, bytes.NewReader(nil), hear, io.Discard)
		if told.Load() || err != nil {
			return
		}
	}
}
