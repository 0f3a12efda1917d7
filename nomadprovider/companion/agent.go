package companion

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
	"time"
)

// GuestCommand runs a command in a VM by its qemu guest agent
// (qga/qapi-schema.json) and returns its exit code. The agent takes the whole of
// a command's input at its start, and gives its output, whole, at its end. When
// ctx ends the command is killed. Without env it has the agent's environment.
//
// The error says what is not there: an agent that answers, or the program.
func GuestCommand(ctx context.Context, socket string, argv, env []string, in []byte, out, errOut io.Writer) (int, error) {
	a := agent{socket: socket}
	pid, err := a.exec(ctx, argv, env, in)
	if err != nil {
		return 0, err
	}
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		var s execStatus
		if err := a.call(ctx, "guest-exec-status", map[string]any{"pid": pid}, &s); err != nil && ctx.Err() == nil {
			return 0, err
		}
		if s.Exited {
			return s.end(out, errOut)
		}
		// The agent tells of an end only when asked.
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
			defer cancel()
			_, err := a.exec(last, []string{"kill", "-9", strconv.Itoa(pid)}, nil, nil)
			return 0, errors.Join(ctx.Err(), err)
		}
	}
}

// exec starts a command and returns the guest's process ID.
func (a agent) exec(ctx context.Context, argv, env []string, in []byte) (pid int, err error) {
	request := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if len(in) > 0 {
		request["input-data"] = in // which JSON has in base64, as the agent wants it
	}
	if len(env) > 0 {
		request["env"] = env
	}
	var started struct {
		PID int `json:"pid"`
	}
	err = a.call(ctx, "guest-exec", request, &started)
	return started.PID, err
}

// The pause between two looks at a command begins and ends with these.
const (
	firstLook = 20 * time.Millisecond
	lastLook  = 500 * time.Millisecond
)

type execStatus struct {
	Exited       bool   `json:"exited"`
	ExitCode     *int   `json:"exitcode"`
	Signal       *int   `json:"signal"`
	Out          []byte `json:"out-data"`
	Err          []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

// end hands on what a command has written. A signal is told as a shell does.
func (s *execStatus) end(out, errOut io.Writer) (code int, err error) {
	if _, err := out.Write(s.Out); err != nil {
		return 0, err
	}
	if _, err := errOut.Write(s.Err); err != nil {
		return 0, err
	}
	if s.OutTruncated || s.ErrTruncated {
		return 0, errors.New("the guest agent has cut the command's output short (16 MiB)")
	}
	switch {
	case s.ExitCode != nil:
		return *s.ExitCode, nil
	case s.Signal != nil:
		return 128 + *s.Signal, nil
	}
	return 0, errors.New("the guest agent does not tell how the command ended")
}

// agent is a VM's guest agent behind its socket.
type agent struct{ socket string }

// answerTime is how long the agent may take for one answer, beside what a long
// request takes at the slowest rate, in bytes a second.
const (
	answerTime = 10 * time.Second
	slowest    = 256 << 10
)

// errSilent is of a guest without an agent, or before it has started one.
var errSilent = errors.New("the guest agent (qemu-guest-agent) does not answer: it is not installed in the VM, or has not started yet")

// agentError is the agent's own word.
type agentError struct{ text string }

func (e *agentError) Error() string { return e.text }

// ping asks for a sign of life, for as long as patience.
func (a agent) ping(ctx context.Context, patience time.Duration) error {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := a.call(short, "guest-ping", map[string]any{}, &struct{}{})
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return errSilent
	}
	return err
}

// call makes one request. qemu serves one client of the socket at a time, so that
// each has it for one request only.
func (a agent) call(ctx context.Context, command string, arguments, result any) error {
	lock, err := exclusive(ctx, a.socket)
	if err != nil {
		return fmt.Errorf("take the guest agent's socket: %w", err)
	}
	defer lock.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	if err != nil {
		return fmt.Errorf("connect to the guest agent's socket: %w", err)
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	request, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(answerTime + time.Duration(len(request)/slowest)*time.Second)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	if err := resync(conn, r); err != nil {
		return err
	}
	if _, err := conn.Write(append(request, '\n')); err != nil {
		return silent(err)
	}
	return receive(r, result)
}

// resync skips what the agent still had to say to somebody else: the answer to
// this command comes after a byte that is in no other
// (qga/qapi-schema.json, guest-sync-delimited).
func resync(w io.Writer, r *bufio.Reader) error {
	const delimiter = 0xff
	id := rand.Int64N(1 << 53)
	// The byte first, too: it ends what the agent has heard half of.
	if _, err := fmt.Fprintf(w, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id); err != nil {
		return silent(err)
	}
	for {
		if _, err := r.ReadBytes(delimiter); err != nil {
			return silent(err)
		}
		var got int64
		if err := receive(r, &got); err == nil && got == id {
			return nil
		}
	}
}

func receive(r *bufio.Reader, result any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return silent(err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(line), &answer); err != nil {
		return fmt.Errorf("the guest agent's answer: %w", err)
	}
	if answer.Error != nil {
		return &agentError{answer.Error.Desc}
	}
	return json.Unmarshal(answer.Return, result)
}

// silent tells an agent that does not answer from other trouble.
func silent(err error) error {
	if isTimeout(err) || errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return errSilent
	}
	return err
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
