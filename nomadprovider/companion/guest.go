package companion

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"
)

// A call of Nomad's exec may end before its command has begun, and lose what one
// that ends at once has written (hashicorp/nomad#27146). What is run here first
// gives a sign and waits for a line, as nomadprovider/taskexec expects.

const (
	// maxInput bounds the input of a command in a VM, in bytes: the agent takes it
	// in one request.
	maxInput = 32 << 20
	// codeNotRun is the exit code of a command that could not be run.
	codeNotRun = 126
)

// begin gives the sign; ok is false when nobody answered it.
func begin(sign string, in io.Reader, out io.Writer) (rest *bufio.Reader, ok bool) {
	if _, err := fmt.Fprintln(out, sign); err != nil {
		return nil, false
	}
	rest = bufio.NewReader(in)
	_, err := rest.ReadString('\n')
	return rest, err == nil
}

// GuestExec runs a command in a VM, in the environment that the archive on disk
// holds, with the whole of in as its input, once the sign was answered, and returns
// its exit code.
func GuestExec(ctx context.Context, socket, disk, sign string, argv []string, in io.Reader, out, errOut io.Writer) int {
	rest, ok := begin(sign, in, out)
	if !ok {
		return 0
	}
	data, err := io.ReadAll(io.LimitReader(rest, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = fmt.Errorf("the command's input is longer than %d MiB, which is what the guest agent takes", maxInput>>20)
	}
	code := 0
	if err == nil {
		code, err = inProgram(ctx, socket, disk, argv, data, out, errOut)
	}
	if err != nil {
		fmt.Fprintln(errOut, err)
		return codeNotRun
	}
	return code
}

// GuestCheck runs a command in a VM without input, once the sign was answered,
// and writes what it wrote, then the sign again with its exit code. When its
// input ends, since nobody wants to know any more, it kills the command.
func GuestCheck(ctx context.Context, socket, disk, sign string, argv []string, in io.Reader, out io.Writer) {
	rest, ok := begin(sign, in, out)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, rest)
		cancel()
	}()
	code, err := inProgram(ctx, socket, disk, argv, nil, out, out)
	if err != nil {
		fmt.Fprintln(out, err)
		code = codeNotRun
	}
	fmt.Fprintf(out, "%s %d\n", sign, code)
}

func inProgram(ctx context.Context, socket, disk string, argv []string, in []byte, out, errOut io.Writer) (int, error) {
	env, err := environ(disk)
	if err != nil {
		return 0, fmt.Errorf("read the container's environment: %w", err)
	}
	return GuestCommand(ctx, socket, argv, env, in, out, errOut)
}

// GuestConsole is [Console], once the sign was answered.
func GuestConsole(ctx context.Context, socket, sign string, in io.Reader, out io.Writer) error {
	rest, ok := begin(sign, in, out)
	if !ok {
		return nil
	}
	return Console(ctx, socket, rest, out)
}

// Linger is how long a command outlives what it has written, which Nomad's docker
// driver would else lose.
const Linger = 300 * time.Millisecond
