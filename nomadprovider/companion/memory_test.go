package companion

import (
	"bufio"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// fakeMonitor is a human monitor as qemu 7.2 has it: it echoes what it is given, by
// letters, and ends lines for a terminal.
func fakeMonitor(t *testing.T, answers ...string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "mon")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ")
		lines := bufio.NewScanner(conn)
		for i := 0; lines.Scan(); {
			fmt.Fprintf(conn, "%s\x1b[K\r\n", lines.Text())
			if strings.HasPrefix(lines.Text(), "qom-get") {
				fmt.Fprint(conn, strings.ReplaceAll(answers[min(i, len(answers)-1)], "\n", "\r\n"))
				i++
			}
			fmt.Fprint(conn, "(qemu) ")
		}
	}()
	return socket
}

func TestGuestMemory(t *testing.T) {
	stats := func(total, available uint64, updated int) string {
		return fmt.Sprintf("{\n    \"stats\": {\n        \"stat-available-memory\": %d,\n        \"stat-total-memory\": %d\n    },\n    \"last-update\": %d\n}\n", available, total, updated)
	}
	silent := stats(math.MaxUint64, math.MaxUint64, 0)
	m, err := GuestMemory(t.Context(), fakeMonitor(t, silent, silent, stats(200<<20, 150<<20, 1700000000)))
	if err != nil || m != (Memory{200 << 20, 150 << 20}) {
		t.Errorf("%+v, %v", m, err)
	}
	for want, answer := range map[string]string{
		"tells nothing":     silent,
		"no balloon device": "Error: Device '/machine/peripheral/balloon' not found\n",
	} {
		if _, err := GuestMemory(t.Context(), fakeMonitor(t, answer)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if _, err := GuestMemory(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error without a monitor")
	}
}
