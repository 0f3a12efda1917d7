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
	// logChunk is about how much is written at a time, in bytes, and logChunks how
	// many such in a round. All that a container writes is less than a file of
	// Docker's own log (deploy/nomad), which holds some 70 bytes more a line: a
	// reader that is behind when Docker 20.10 turns to the next one misses the rest,
	// whoever follows.
	logChunk  = 1 << 20
	logChunks = 3
	// latencyLines are followed in a round, one each 0.1 s.
	latencyLines = 25
)

// logScript writes chunks as fast as it can, so many for each mark go.N.NAME,
// which names the chunk.
const logScript = `echo ready
r=1
while :; do
  until [ -e "/marks/go.$r.%[1]s" ]; do sleep 0.02; done
  read -r chunk n < "/marks/go.$r.%[1]s"
  while [ $n -gt 0 ]; do
    cat "/marks/$chunk"
    n=$((n-1))
  done
  r=$((r+1))
done`

// tickScript writes a line each 0.1 s that says when, in seconds since the boot.
const tickScript = `while :; do read -r up rest < /proc/uptime; echo "$up"; sleep 0.1; done`

// logRun is a container whose log is followed in rounds.
type logRun struct {
	*streamed
	round int
	last  string // line
}

// BenchmarkLogFollow follows the log of a container that writes as fast as it
// can, through the API server and, of another one, by Nomad's own API. Both get
// every byte.
func BenchmarkLogFollow(b *testing.B) {
	h := hy
	ns := h.namespace(b)
	for _, length := range []int{100, 1024} {
		b.Run(fmt.Sprint(length), func(b *testing.B) {
			var runs [2]*logRun
			for i := range runs {
				name := fmt.Sprintf("writer-%d-%d", length, i)
				runs[i] = &logRun{streamed: h.streamed(b, ns, name, fmt.Sprintf(logScript, name)), last: "ready\n"}
			}
			throughput(b, runs, length)
		})
	}
	must(b, h.removePods(b.Context(), ns))
}

func throughput(b *testing.B, runs [2]*logRun, length int) {
	ctx, cancel := context.WithTimeout(b.Context(), streamTimeout)
	defer cancel()
	chunk, text := fmt.Sprintf("chunk%d", length), numbered(logChunk/length, length)
	must(b, os.WriteFile(filepath.Join(string(runs[0].marks), chunk), text, 0o644))
	got := runs[0].h.turns(b, int64(logChunks*len(text)), func(i int) (time.Duration, error) {
		return runs[i].follow(ctx, runs[i].sides()[i], chunk, text)
	})
	reportRates(b, fmt.Sprintf("logs -f of lines of %d bytes, written as fast as can be", length), "Nomad's own", got)
}

// follow takes the time from the go until all has arrived.
func (l *logRun) follow(ctx context.Context, by side, chunk string, text []byte) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := by.follow(ctx, len(l.last))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	log := bufio.NewReaderSize(body, 64<<10)
	// Only when all that was written before has come, what comes is of this round.
	for line := ""; line != l.last; {
		if line, err = log.ReadString('\n'); err != nil {
			return 0, fmt.Errorf("the last line, by %s: %w", by.name, err)
		}
	}
	l.round++
	start := time.Now()
	if err := l.marks.tell(fmt.Sprintf("go.%d.%s", l.round, l.pod.Name), fmt.Sprintf("%s %d\n", chunk, logChunks)); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(&repeated{text: text}, log, int64(logChunks*len(text))); err != nil {
		return 0, fmt.Errorf("the log, by %s: %w", by.name, err)
	}
	l.last = string(text[strings.LastIndexByte(string(text[:len(text)-1]), '\n')+1:])
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
