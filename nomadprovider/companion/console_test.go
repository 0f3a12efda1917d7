package companion

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// chardev is a socket that serves one client at a time, as qemu's do.
func chardev(t *testing.T) (socket string, clients <-chan net.Conn) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "con.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ch := make(chan net.Conn)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ch <- conn
		}
	}()
	return socket, ch
}

func TestConsole(t *testing.T) {
	socket, clients := chardev(t)
	in, say := io.Pipe()
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- Console(t.Context(), socket, in, &out) }()
	guest := <-clients
	if _, err := say.Write([]byte("ls\r")); err != nil {
		t.Fatal(err)
	}
	if got, err := bufio.NewReader(guest).ReadString('\r'); got != "ls\r" || err != nil {
		t.Errorf("the guest heard %q, %v", got, err)
	}
	if _, err := guest.Write([]byte("bin\r\n\xff")); err != nil {
		t.Fatal(err)
	}
	guest.Close() // the VM ends
	if err := <-done; err != nil || out.String() != "bin\r\n\xff" {
		t.Errorf("%v, %q", err, out.String())
	}
}

// A client that leaves frees the console, and one that does not read does not
// stop the guest.
func TestConsoleLetsGo(t *testing.T) {
	socket, clients := chardev(t)
	done := make(chan error, 1)
	in, say := io.Pipe()
	go func() { done <- Console(t.Context(), socket, in, io.Discard) }()
	<-clients
	say.Close()
	if err := <-done; err != nil && !strings.Contains(err.Error(), "closed") {
		t.Error(err)
	}
	stuck, release := io.Pipe()
	defer stuck.Close()
	in, say = io.Pipe()
	defer say.Close()
	go func() { done <- Console(t.Context(), socket, in, release) }()
	guest := <-clients
	if err := guest.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := guest.Write(make([]byte, 4096)); err != nil {
			if os.IsTimeout(err) {
				t.Error("the guest waits for the client")
			}
			break
		}
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "does not read") {
		t.Errorf("%v", err)
	}
}

// The last to come has the console. The one before is another process, as in the
// companion's container.
func TestConsoleTakenOver(t *testing.T) {
	if socket := os.Getenv("CONSOLE_OF_TEST"); socket != "" {
		lock, err := succeed(socket)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		_, _ = os.Stdout.WriteString("held\n")
		time.Sleep(time.Minute)
		return
	}
	socket, clients := chardev(t)
	first := exec.Command(os.Args[0], "-test.run", "^TestConsoleTakenOver$")
	first.Env = append(os.Environ(), "CONSOLE_OF_TEST="+socket)
	said, err := first.StdoutPipe()
	if err == nil {
		err = first.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	done := make(chan error, 1)
	in, say := io.Pipe()
	defer say.Close()
	go func() { done <- Console(t.Context(), socket, in, io.Discard) }()
	guest := <-clients
	guest.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := first.Wait(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("the first client ended with %v", err)
	}
}
