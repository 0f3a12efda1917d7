package companion

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit names what a VM tells of the end of its container's command by.
type Exit struct {
	// Port is the socket of the guest's serial port, of which File is the log: the
	// exit code on its first line.
	Port, File string
	// Monitor is the socket of a qemu monitor (QMP) that nobody else uses.
	Monitor string
}

// between is the pause between two looks for a VM.
const between = time.Second

// Ends has a VM whose command has failed end with its exit code, until ctx ends:
// a guest that shuts down would else have ended well, and qemu has no other way to
// tell. qemu makes the code odd (hw/misc/debugexit.c); the file says what it was.
func Ends(ctx context.Context, e Exit) {
	for {
		if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", e.Port); err == nil {
			if err := e.follow(ctx, conn); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "companion: the end of the VM:", err)
			}
			conn.Close()
		}
		// A socket that is not there yet tells nobody when it is.
		select {
		case <-ctx.Done():
			return
		case <-time.After(between):
		}
	}
}

// follow is one run of the VM.
func (e Exit) follow(ctx context.Context, port net.Conn) error {
	unblock := context.AfterFunc(ctx, func() { port.Close() })
	defer unblock()
	buf := make([]byte, 512)
	var until time.Time // no end of patience
	for {
		// A former self may have missed it.
		if code := e.code(); code > 0 {
			return e.end(ctx, port, code)
		}
		_ = port.SetReadDeadline(until) // what fails here fails at the read, too
		switch _, err := port.Read(buf); {
		case err == nil:
			until = time.Now().Add(between) // qemu writes to the port first, and then to the file
		case errors.Is(err, os.ErrDeadlineExceeded):
			until = time.Time{}
		default:
			return nil // the VM has ended
		}
	}
}

// code is what the guest has told, 0 as long as it has not.
func (e Exit) code() int {
	data, err := os.ReadFile(e.File)
	if err != nil {
		return 0
	}
	line, _, whole := strings.Cut(string(data), "\n")
	code, err := strconv.Atoi(strings.TrimSpace(line))
	if !whole || err != nil || code < 0 || code > 255 {
		return 0
	}
	return code
}

// end has qemu keep the VM when the guest has shut down, tells the guest to do
// that, and then ends qemu with the code.
func (e Exit) end(ctx context.Context, port io.Writer, code int) error {
	m, err := dialQMP(ctx, e.Monitor)
	if err != nil {
		return err
	}
	defer m.Close()
	unblock := context.AfterFunc(ctx, func() { m.Close() })
	defer unblock()
	if err := m.run("set-action", map[string]any{"shutdown": "pause"}, nil); err != nil {
		return err
	}
	if _, err := io.WriteString(port, "shut down\n"); err != nil {
		return err
	}
	var is struct{ Status string }
	for err = m.run("query-status", nil, &is); is.Status != "shutdown"; err = m.run("query-status", nil, &is) {
		if err == nil {
			err = m.await("SHUTDOWN")
		}
		if err != nil {
			return err
		}
	}
	err = m.run("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("o /b 0x501 %#x", code/2)}, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil // it has ended
	}
	return err
}

// qmp is a qemu monitor (qemu, docs/interop/qmp-spec.txt).
type qmp struct {
	net.Conn
	dec *json.Decoder
	// seen are the events that came before they were waited for.
	seen map[string]bool
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Event  string          `json:"event"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

func dialQMP(ctx context.Context, socket string) (*qmp, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the VM's monitor: %w", err)
	}
	m := &qmp{Conn: conn, dec: json.NewDecoder(bufio.NewReader(conn)), seen: map[string]bool{}}
	var greeting map[string]any
	if err = m.dec.Decode(&greeting); err == nil {
		err = m.run("qmp_capabilities", nil, nil)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("the VM's monitor: %w", err)
	}
	return m, nil
}

// run runs a command and reads what it returns into result, unless that is nil.
func (m *qmp) run(command string, arguments map[string]any, result any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.Conn).Encode(request); err != nil {
		return err
	}
	for {
		var got qmpMessage
		if err := m.dec.Decode(&got); err != nil {
			return err
		}
		switch {
		case got.Event != "":
			m.seen[got.Event] = true
		case got.Error != nil:
			return fmt.Errorf("%s: %s", command, got.Error.Desc)
		case result != nil:
			return json.Unmarshal(got.Return, result)
		default:
			return nil
		}
	}
}

// await returns when qemu has told of an event.
func (m *qmp) await(event string) error {
	for !m.seen[event] {
		var got qmpMessage
		if err := m.dec.Decode(&got); err != nil {
			return err
		}
		m.seen[got.Event] = true
	}
	delete(m.seen, event)
	return nil
}
