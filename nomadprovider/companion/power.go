package companion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// prompt ends qemu's banner on its human monitor.
var prompt = []byte("(qemu) ")

// PowerButton waits until stop is done and then presses the power button of
// the VM whose monitor listens on the Unix socket, and stays connected until
// the VM has gone or ctx ends.
//
// Nomad's qemu driver presses it too (graceful_shutdown), but hangs up in the
// same breath, and qemu before 9.0 drops what a client wrote that has hung up
// (chardev/char-socket.c, tcp_chr_hup).
func PowerButton(ctx context.Context, stop <-chan struct{}, socket string) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-stop:
	}
	conn, err := monitor(ctx, socket, powerButton)
	if err != nil {
		return fmt.Errorf("press the VM's power button: %w", err)
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	// The monitor says nothing of interest until the VM is off.
	_, _ = io.Copy(io.Discard, conn)
	return nil
}

const (
	powerButton = "system_powerdown"
	// cutPower writes to the port of the device isa-debug-exit, with which qemu
	// ends as a process that was killed does: 2*0x44+1 is 137.
	cutPower = "o /b 0x501 0x44"
)

// Press presses the VM's power button and does not wait for what comes of it.
func Press(ctx context.Context, socket string) error { return command(ctx, socket, powerButton) }

// Cut ends the VM at once, with the exit code of a process that was killed.
func Cut(ctx context.Context, socket string) error { return command(ctx, socket, cutPower) }

// command has a command of the monitor heard: its next prompt, or its end, says so.
func command(ctx context.Context, socket, line string) error {
	conn, err := monitor(ctx, socket, line)
	if err != nil {
		return err
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	if err := awaitPrompt(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("wait for the VM's monitor: %w", err)
	}
	return nil
}

// monitor connects to a VM's human monitor and gives it a line.
func monitor(ctx context.Context, socket, line string) (net.Conn, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the VM's monitor: %w", err)
	}
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	if err = awaitPrompt(conn); err == nil {
		_, err = io.WriteString(conn, line+"\n")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("speak to the VM's monitor: %w", err)
	}
	return conn, nil
}

// dial tries again while another client, Nomad's driver, has the monitor: qemu
// serves one at a time.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	const tries, pause = 10, 100 * time.Millisecond
	var conn net.Conn
	var err error
	for range tries {
		if conn, err = (&net.Dialer{}).DialContext(ctx, "unix", socket); err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil, err
}

func awaitPrompt(r io.Reader) error {
	var seen []byte
	buf := make([]byte, 512)
	for !bytes.Contains(seen, prompt) {
		n, err := r.Read(buf)
		if err != nil {
			return err
		}
		seen = append(seen, buf[:n]...)
	}
	return nil
}
