package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// logChunk is about how much is written at a time, in bytes.
	logChunk = 1 << 20
	// logMost and logBeside bound what a container writes: Docker's own log, which
	// holds so many bytes more a line, stays within one file (deploy/nomad). A reader
	// that is behind when Docker 20.10 turns to the next one misses the rest, whoever
	// follows.
	logMost, logBeside = 18 << 20, 80
	// latencyLines are followed in a round, one each 0.1 s.
	latencyLines = 25
)

// logScript writes a chunk as often as it is told by the pipe go, as fast as it
// can. It waits without a sound: those of later rounds are there, too.
const logScript = `echo ready
read -r n < /marks/go
while [ $n -gt 0 ]; do
  cat /marks/chunk
  n=$((n-1))
done`

// tickScript writes a line each 0.1 s that says when, in seconds since the boot.
const tickScript = `while :; do read -r up rest < /proc/uptime; echo "$up"; sleep 0.1; done`

// BenchmarkLogFollow follows the log of a container that writes as fast as it
// can, through the API server and, of another one, by Nomad's own API. Both get
// every byte.
func BenchmarkLogFollow(b *testing.B) {
	h := hy
	ns := h.namespace(b)
	for _, length := range []int{100, 1024} {
		b.Run(fmt.Sprint(length), func(b *testing.B) { followedRates(b, h, ns, length) })
	}
	must(b, h.removePods(b.Context(), ns))
}

func followedRates(b *testing.B, h *hybrid, ns string, length int) {
	text := numbered(logChunk/length, length)
	chunks := logMost * length / (length + logBeside) / len(text)
	var writers [2][]*streamed
	for range *streamRounds {
		for i := range writers {
			w := h.streamed(b, ns, fmt.Sprintf("writer-%d-%d-%d", length, i, len(writers[i])),
				"until [ -p /marks/go ]; do sleep 0.1; done\n"+logScript)
			must(b, os.WriteFile(filepath.Join(string(w.marks), "chunk"), text, 0o644))
			must(b, unix.Mkfifo(filepath.Join(string(w.marks), "go"), 0o644))
			writers[i] = append(writers[i], w)
		}
	}
	must(b, h.quiet(b.Context()))
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	got := h.turns(b, int64(chunks*len(text)), func(i int) (time.Duration, error) {
		w := writers[i][0]
		writers[i] = writers[i][1:]
		return w.followed(ctx, w.sides()[i], text, chunks)
	})
	reportRates(b, fmt.Sprintf("logs -f of lines of %d bytes, %d MiB written as fast as can be", length, chunks*len(text)>>20), "Nomad's own", got)
}

// followed takes the time from the go until all has arrived.
func (s *streamed) followed(ctx context.Context, by side, text []byte, chunks int) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const ready = "ready\n"
	body, err := by.follow(ctx, len(ready))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	log := bufio.NewReaderSize(body, 64<<10)
	if line, err := log.ReadString('\n'); err != nil || line != ready {
		return 0, fmt.Errorf("the first line, by %s: %q, %v", by.name, line, err)
	}
	start := time.Now()
	if err := os.WriteFile(filepath.Join(string(s.marks), "go"), fmt.Appendf(nil, "%d\n", chunks), 0); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(&repeated{text: text}, log, int64(chunks*len(text))); err != nil {
		return 0, fmt.Errorf("the log, by %s: %w", by.name, err)
	}
	return time.Since(start), nil
}

// BenchmarkLogLatency takes the time from the moment that a line itself tells to
// its arrival, at two followers at once. Nomad looks for news by two clocks of
// its own that begin with the request, so followers come and go.
func BenchmarkLogLatency(b *testing.B) {
	h := hy
	s := h.streamed(b, h.namespace(b), "ticker", tickScript)
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	var took [2][]time.Duration
	for range 3 * *streamRounds {
		var lists [2][]time.Duration
		must(b, parallel(2, func(i int) (err error) {
			lists[i], err = latencies(ctx, s.sides()[i])
			return err
		}))
		for i := range took {
			took[i] = append(took[i], lists[i]...)
		}
	}
	must(b, h.removePods(b.Context(), s.pod.Namespace))
	reportAdded(b, "logs -f: from a line's writing to its arrival", "Nomad's own", took[0], took[1])
}

// latencies are those of lines that are written after the follower has got one.
func latencies(ctx context.Context, by side) (took []time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := by.follow(ctx, 1)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var from time.Duration
	for log := bufio.NewReader(body); len(took) < latencyLines; {
		line, err := log.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("the log, by %s: %w", by.name, err)
		}
		now := uptime()
		written, err := parseUptime(line)
		switch {
		case line == "\n": // the end of the last line, with which Nomad's side begins
		case err != nil:
			return nil, err
		case from == 0:
			from = now
		case written > from:
			took = append(took, now-written)
		}
	}
	return took, nil
}

// parseUptime reads what tickScript writes, good to 10 ms.
func parseUptime(line string) (time.Duration, error) {
	s, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
	return time.Duration(s * float64(time.Second)), err
}

// uptime is this machine's, as /proc/uptime tells it.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}
