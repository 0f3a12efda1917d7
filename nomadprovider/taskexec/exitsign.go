package taskexec

import (
	"bytes"
	"slices"
	"strconv"
)

// exitSign takes out of an output what the script around a command says at its
// end: a sign that nothing else is likely to say, a space, the exit code and the
// end of the line. The sign is there as soon as all output is; what Nomad says
// comes 0.2 s later, when the script has ended, or more.
type exitSign struct {
	sign []byte
	// held may be the beginning of it.
	held []byte
	seen bool
	code int
}

// take returns what of an output is the command's. It may be a part of p.
func (e *exitSign) take(p []byte) []byte {
	if e.seen {
		return nil // of what outlives the command
	}
	if len(e.held) > 0 {
		p = slices.Concat(e.held, p)
		e.held = nil
	}
	for from := 0; ; {
		i := bytes.Index(p[from:], e.sign)
		if i < 0 {
			at := len(p) - e.begun(p[from:])
			e.held = bytes.Clone(p[at:])
			return p[:at]
		}
		i += from
		code, complete, ok := exitLine(p[i+len(e.sign):])
		switch {
		case ok && complete:
			e.seen, e.code = true, code
			return p[:i]
		case ok:
			e.held = bytes.Clone(p[i:])
			return p[:i]
		}
		from = i + 1
	}
}

// begun is the length of the end of p that may be the sign's beginning.
func (e *exitSign) begun(p []byte) int {
	for n := min(len(p), len(e.sign)-1); n > 0; n-- {
		if bytes.HasSuffix(p, e.sign[:n]) {
			return n
		}
	}
	return 0
}

// rest is what was held for nothing, once no more output comes.
func (e *exitSign) rest() []byte {
	p := e.held
	e.held = nil
	return p
}

// exitLine reads what comes behind the sign. A terminal ends lines its own way.
func exitLine(p []byte) (code int, complete, ok bool) {
	const longest = len(" 255\r\n")
	line, _, complete := bytes.Cut(p, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) >= longest || len(line) > 0 && line[0] != ' ' || len(line) == 0 && complete:
		return 0, false, false
	case len(line) <= 1:
		return 0, false, !complete
	}
	code, err := strconv.Atoi(string(line[1:]))
	return code, complete, err == nil && code >= 0
}
