package dockerproxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
)

// begin makes a command as the docker driver does, starts it, and returns its
// connection.
func begin(t *testing.T, proxy string, c *http.Client, tty bool, argv ...string) (id string, conn *net.UnixConn, out *bufio.Reader) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"Cmd": argv, "Tty": tty, "AttachStdin": true})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Post("http://x/v1.41/containers/c1/exec", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var made struct{ Id string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %v", resp.Status, err)
	}
	dialled, err := net.Dial("unix", proxy)
	if err != nil {
		t.Fatal(err)
	}
	conn = dialled.(*net.UnixConn)
	t.Cleanup(func() { conn.Close() })
	_, _ = fmt.Fprintf(conn, "POST /v1.41/exec/%s/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}", made.Id)
	out = bufio.NewReader(conn)
	started, err := http.ReadResponse(out, nil)
	if err != nil || started.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(started, err)
	}
	return made.Id, conn, out
}

// exit waits for the end of a command as the driver does.
func exit(t *testing.T, c *http.Client, id string) (code int) {
	t.Helper()
	for {
		var state struct {
			Running  bool
			ExitCode int
		}
		if err := json.NewDecoder(get(t, c, "GET", "/v1.41/exec/"+id+"/json").Body).Decode(&state); err != nil {
			t.Fatal(err)
		}
		if !state.Running {
			return state.ExitCode
		}
	}
}

func TestAttach(t *testing.T) {
	_, proxy, c := start(t)
	id, conn, out := begin(t, proxy, c, false, CallProgram, CallAttach)
	_, _ = io.WriteString(conn, "input")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// What the engine sends comes as it is.
	if got, err := io.ReadAll(out); err != nil || string(got) != "attached to c1: input" {
		t.Errorf("%q %v", got, err)
	}
	if code := exit(t, c, id); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A call is ended by its token, and by no other.
func TestEnd(t *testing.T) {
	_, proxy, c := start(t)
	id, conn, out := begin(t, proxy, c, false, CallProgram, CallAttach, "mine")
	if _, err := io.ReadFull(out, make([]byte, len("attached to c1: "))); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"another", ""} {
		other, _, _ := begin(t, proxy, c, false, CallProgram, CallEnd, token)
		if code := exit(t, c, other); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	if _, err := io.WriteString(conn, "x"); err != nil {
		t.Fatal(err)
	}
	if b, err := out.ReadByte(); err != nil || b != 'x' {
		t.Fatalf("%q %v", b, err)
	}
	end, _, _ := begin(t, proxy, c, false, CallProgram, CallEnd, "mine")
	exit(t, c, end)
	if got, err := io.ReadAll(out); err != nil || len(got) > 0 {
		t.Errorf("%q %v", got, err)
	}
	exit(t, c, id)
}

// framed reads the standard output of a multiplexed stream.
type framed struct {
	*bufio.Reader
	net.Conn
	left int
}

func (f *framed) Read(p []byte) (int, error) {
	for f.left == 0 {
		head := make([]byte, 8)
		if _, err := io.ReadFull(f.Reader, head); err != nil {
			return 0, err
		}
		f.left = int(head[4])<<24 | int(head[5])<<16 | int(head[6])<<8 | int(head[7])
	}
	n, err := f.Reader.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

// The pod's network is that of the test itself here.
func TestForward(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
		}
	}()
	_, proxy, c := start(t)
	id, conn, out := begin(t, proxy, c, false, CallProgram, CallForward)
	client, err := forward.NewClient(&framed{Reader: out, Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		to, err := client.Dial(t.Context(), int32(l.Addr().(*net.TCPAddr).Port))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(to, "hello")
		_ = to.CloseWrite()
		if got, err := io.ReadAll(to); err != nil || string(got) != "hello" {
			t.Errorf("%q %v", got, err)
		}
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if code := exit(t, c, id); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestCallsThatFail(t *testing.T) {
	_, proxy, c := start(t)
	id, _, out := begin(t, proxy, c, false, CallProgram, "dance")
	if got, err := io.ReadAll(out); err != nil || !strings.Contains(string(got), `"dance" is no call`) || got[0] != 2 {
		t.Errorf("%q %v", got, err)
	}
	if code := exit(t, c, id); code != 1 {
		t.Errorf("exit code %d", code)
	}
	// It is started once.
	resp := get(t, c, "POST", "/exec/"+id+"/start")
	if resp.StatusCode != http.StatusConflict {
		t.Errorf("started again: %s", resp.Status)
	}
	// Other programs are the engine's business.
	other, err := c.Post("http://x/containers/c1/exec", "application/json", strings.NewReader(`{"Cmd":["/bin/true","attach"]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Body.Close()
	if got, _ := io.ReadAll(other.Body); !strings.HasPrefix(string(got), "POST /containers/c1/exec") {
		t.Errorf("%q", got)
	}
	begun := time.Now()
	if exit(t, c, id); time.Since(begun) > time.Second {
		t.Error("an ended call is waited for")
	}
}
