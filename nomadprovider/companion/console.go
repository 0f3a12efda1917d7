package companion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/nomad-kubelet/nomad-kubelet/internal/filelock"
)

// Console joins a client to a VM's serial console until its input ends, the VM
// ends or ctx does. Only what the guest writes from now on is handed on. qemu
// serves one client at a time: the last to come has the console, and the one
// before is let go, who may have left without a word.
func Console(ctx context.Context, socket string, in io.Reader, out io.Writer) error {
	lock, err := succeed(socket)
	if err != nil {
		return fmt.Errorf("take the VM's console: %w", err)
	}
	defer lock.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("connect to the VM's console: %w", err)
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	go func() {
		_, _ = io.Copy(conn, in) // the end of the input is the client's end
		conn.Close()
	}()
	return drain(conn, out)
}

// consoleBuffer is how far a client may lag behind.
const consoleBuffer = 256

// drain hands on what is read. A client that does not take it is cut off rather
// than let the guest wait for room on its console.
func drain(conn io.ReadCloser, out io.Writer) error {
	pieces := make(chan []byte, consoleBuffer)
	written := make(chan error, 1)
	go func() {
		for p := range pieces {
			if _, err := out.Write(p); err != nil {
				conn.Close()
				written <- err
				for range pieces { // until the reader has seen it
				}
				return
			}
		}
		written <- nil
	}()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			select {
			case pieces <- append([]byte(nil), buf[:n]...):
			default:
				close(pieces)
				return errors.New("the client does not read what the VM's console says")
			}
		}
		if err != nil {
			close(pieces)
			if err := <-written; err != nil {
				return err
			}
			return nil // the VM has ended, or the client
		}
	}
}

// exclusive takes the right to use a socket that serves one client at a time, in
// the order of asking, or gives up when ctx ends. It is given back when the file is
// closed or the process ends.
func exclusive(ctx context.Context, socket string) (*os.File, error) {
	return filelock.Exclusive(ctx, socket+".lock")
}

// succeed is exclusive, and tells the process that has the right to end.
func succeed(socket string) (*os.File, error) {
	f, err := os.OpenFile(socket+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = filelock.Flock(f, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := os.ReadFile(f.Name())
		if pid, e := strconv.Atoi(string(holder)); e == nil && pid > 0 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGTERM) // it may be gone by now
		}
		err = filelock.Flock(f, syscall.LOCK_EX)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d", os.Getpid()), 0)
	}
	if err == nil {
		err = f.Truncate(int64(len(strconv.Itoa(os.Getpid()))))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
