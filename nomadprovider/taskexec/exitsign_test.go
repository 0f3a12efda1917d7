package taskexec

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// The sign is taken out of an output that comes in pieces of any size, and nothing
// else is.
func TestExitSign(t *testing.T) {
	const sign = "ABABC"
	for _, tc := range []struct {
		name, in, out string
		code          int // -1: not seen
	}{
		{"alone", sign + " 0\n", "", 0},
		{"behind output", "hello\n" + sign + " 7\n", "hello\n", 7},
		{"behind a line without an end", "hello" + sign + " 130\n", "hello", 130},
		{"on a terminal", "hello\r\n" + sign + " 1\r\n", "hello\r\n", 1},
		{"its beginning twice", "ABABABC 3\n", "AB", 3},
		{"nothing behind it counts", sign + " 0\nlater", "", 0},
		{"without a code", sign + "\n", sign + "\n", -1},
		{"with a word", sign + " $__nk\n", sign + " $__nk\n", -1},
		{"with too much", sign + " 1234567\n", sign + " 1234567\n", -1},
		{"at once again", sign + " x" + sign + " 4\n", sign + " x", 4},
		{"only begun", "xABAB", "xABAB", -1},
		{"cut off", "x" + sign + " 12", "x" + sign + " 12", -1},
	} {
		for _, size := range []int{1, 2, 3, 1000} {
			var out bytes.Buffer
			e := &exitSign{sign: []byte(sign)}
			from := strings.NewReader(tc.in)
			for buf := make([]byte, size); ; {
				n, err := from.Read(buf)
				out.Write(e.take(buf[:n]))
				if err == io.EOF {
					break
				}
			}
			out.Write(e.rest())
			code := -1
			if e.seen {
				code = e.code
			}
			if out.String() != tc.out || code != tc.code {
				t.Errorf("%s, by %d: %q with code %d, want %q with %d", tc.name, size, out.String(), code, tc.out, tc.code)
			}
		}
	}
}

// A terminal's output ends with the sign, too.
func TestExitSignOnTerminal(t *testing.T) {
	var out bytes.Buffer
	h := newHandshake(t.Context(), strings.NewReader(""), &out, io.Discard, true)
	r := iotest.OneByteReader(strings.NewReader(execSign + " 17\r\n\r\nbye" + h.sign + " 5\r\n"))
	if _, err := io.Copy(writer(h.stdout), r); err != nil || out.String() != "bye" {
		t.Errorf("%v, %q", err, out.String())
	}
	if code, ended := h.exit(); !ended || code != 5 || h.ctx.Err() == nil {
		t.Errorf("%t with %d, the call: %v", ended, code, h.ctx.Err())
	}
}
