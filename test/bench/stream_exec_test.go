package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// idleScript leaves all to commands.
const idleScript = "sleep 36000 & wait"

// BenchmarkExec takes the times of commands through the API server, by websocket
// as kubectl does, beside Nomad's own exec in the same container.
func BenchmarkExec(b *testing.B) {
	h := hy
	s := h.streamed(b, h.namespace(b), "idle", idleScript)
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	s.callTimes(b, ctx)
	s.lineTimes(b, ctx)
	s.callRates(b, ctx)
	must(b, h.removePods(b.Context(), s.pod.Namespace))
}

// callTimes runs a command that does nothing.
func (s *streamed) callTimes(b *testing.B, ctx context.Context) {
	var took [2][]time.Duration
	// The first of each is not counted.
	for n := range *streamCalls + 1 {
		for i, by := range s.sides() {
			start := time.Now()
			must(b, by.exec(ctx, []string{"true"}, nil, io.Discard))
			if n > 0 {
				took[i] = append(took[i], time.Since(start))
			}
		}
	}
	reportAdded(b, "exec: a command that does nothing", "Nomad's own", took[0], took[1])
}

// lineTimes sends lines to a command that sends them back.
func (s *streamed) lineTimes(b *testing.B, ctx context.Context) {
	var took [2][]time.Duration
	for i, by := range s.sides() {
		fromUs, toCommand := io.Pipe()
		fromCommand, toUs := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			err := by.exec(ctx, []string{"cat"}, fromUs, toUs)
			_ = toUs.CloseWithError(io.ErrUnexpectedEOF)
			ended <- err
		}()
		lines := bufio.NewReader(fromCommand)
		for n := range 5**streamCalls + 1 {
			start, line := time.Now(), fmt.Sprintf("line %d\n", n)
			_, err := io.WriteString(toCommand, line)
			must(b, err)
			back, err := lines.ReadString('\n')
			must(b, err)
			if back != line {
				b.Fatalf("%q came back for %q", back, line)
			}
			if n > 0 {
				took[i] = append(took[i], time.Since(start))
			}
		}
		must(b, toCommand.Close())
		must(b, <-ended)
	}
	reportAdded(b, "exec: a line there and back", "Nomad's own", took[0], took[1])
}

// callRates carries much out of a command, and into one.
func (s *streamed) callRates(b *testing.B, ctx context.Context) {
	text := numbered(1<<14, 64) // of a MiB
	must(b, os.WriteFile(filepath.Join(string(s.marks), "text"), text, 0o644))
	size := int64(*streamMiB) << 20
	sides := s.sides()
	out := s.h.turns(b, size, func(i int) (time.Duration, error) {
		start, got := time.Now(), &repeated{text: text}
		err := sides[i].exec(ctx, []string{"sh", "-c", sourceScript(*streamMiB)}, nil, got)
		if err == nil && got.n != size {
			err = fmt.Errorf("%d bytes came of %d", got.n, size)
		}
		return time.Since(start), err
	})
	reportRates(b, fmt.Sprintf("exec: %d MiB out of a container", *streamMiB), "Nomad's own", out)
	in := s.h.turns(b, size, func(i int) (time.Duration, error) {
		var said bytes.Buffer
		start := time.Now()
		err := sides[i].exec(ctx, []string{"sh", "-c", sinkScript}, io.LimitReader(&repeating{text: text}, size), &said)
		if err == nil {
			err = allArrived(said.String(), size)
		}
		return time.Since(start), err
	})
	reportRates(b, fmt.Sprintf("exec: %d MiB into a container", *streamMiB), "Nomad's own", in)
}

// sourceScript gives the text of a MiB that is among the marks so many times.
func sourceScript(n int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat /marks/text; i=$((i+1)); done", n)
}

// sinkScript takes all that comes and says how much that was; see allArrived.
const sinkScript = "dd of=/dev/null bs=64k iflag=fullblock 2>&1"

func allArrived(said string, size int64) error {
	if want := fmt.Sprintf("%d+0 records in", size>>16); !strings.Contains(said, want) {
		return fmt.Errorf("there were %q, not %q", said, want)
	}
	return nil
}
