package companion

import (
	"bufio"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// The button is pressed only after the prompt, and the connection is held until
// the VM hangs up.
func TestPowerButton(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qm.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- PowerButton(t.Context(), stop, socket) }()
	close(stop)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "QEMU 7.2 monitor - type 'help'\r\n(qem"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "u) "); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != "system_powerdown\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	select {
	case err := <-done:
		t.Fatalf("it hung up before the VM was off: %v", err)
	default:
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPowerButtonWithoutVM(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	if err := PowerButton(t.Context(), stop, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a monitor that is not there")
	}
}
