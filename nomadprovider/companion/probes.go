package companion

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
)

// Both ends of [Probes] send a line at least every ProbesBeat, an empty one if
// there is nothing to say, and give the other up after ProbesSilence: a
// connection may be gone without a word, and Nomad does not close the input of a
// command whose caller was killed.
const (
	ProbesBeat    = 10 * time.Second
	ProbesSilence = 3 * ProbesBeat
)

// Probes runs the pod's probes as long as in is open and not silent. Each line
// of in is the list of all probes that are to run ([]probes.Probe in JSON), each
// line of out a report ([probes.Report]) or what was tried since the last such line
// ([ProbesMade]); empty lines are signs of life. The error is of a line that is not
// understood, or of a silent in.
func Probes(ctx context.Context, in io.Reader, out io.Writer, prober probes.Prober, c clock.WithTicker) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &lines{out: out, failed: cancel}
	set := probes.NewSet(ctx, prober, c, w.report, w.made)
	defer set.Wait()
	defer cancel()
	w.write(nil)

	read := make(chan []probes.Probe)
	ended := make(chan error, 1)
	go func() { ended <- readLists(ctx, in, read) }()
	beat := c.NewTicker(ProbesBeat)
	defer beat.Stop()
	silence := c.NewTimer(ProbesSilence)
	defer silence.Stop()
	for {
		select {
		case list := <-read:
			silence.Reset(ProbesSilence)
			if list != nil {
				set.Update(list)
			}
		case <-beat.C():
			w.beat()
		case <-silence.C():
			return fmt.Errorf("nothing was heard for %s", ProbesSilence)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// readLists hands on each list, nil for an empty line, until in ends.
func readLists(ctx context.Context, in io.Reader, to chan<- []probes.Probe) error {
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil // what came before it is not a whole line
		}
		var list []probes.Probe
		if len(line) > 1 {
			list = []probes.Probe{}
			if err := json.Unmarshal(line, &list); err != nil {
				return fmt.Errorf("read a list of probes: %w", err)
			}
		}
		select {
		case to <- list:
		case <-ctx.Done():
			return nil
		}
	}
}

// ProbesMade are attempts, for counting.
type ProbesMade struct {
	Attempts []probes.Attempt `json:"attempts"`
}

// madeAtOnce is how many attempts are told by one line, which is not to be long.
const madeAtOnce = 200

// lines writes whole lines, one at a time.
type lines struct {
	mu       sync.Mutex
	out      io.Writer
	failed   func()
	attempts []probes.Attempt
}

// made tells of attempts with the next sign of life: each for itself they would be
// many.
func (l *lines) made(a probes.Attempt) {
	l.mu.Lock()
	l.attempts = append(l.attempts, a)
	full := len(l.attempts) >= madeAtOnce
	l.mu.Unlock()
	if full {
		l.beat()
	}
}

// beat is a sign of life.
func (l *lines) beat() {
	l.mu.Lock()
	var line []byte
	if len(l.attempts) > 0 {
		line, _ = json.Marshal(ProbesMade{l.attempts}) // no type in it can fail
	}
	l.attempts = nil
	l.mu.Unlock()
	l.write(line)
}

func (l *lines) report(r probes.Report) {
	line, err := json.Marshal(r)
	if err != nil {
		line = nil // no type of a report can fail
	}
	l.write(line)
}

func (l *lines) write(line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.out.Write(append(line, '\n')); err != nil {
		l.failed()
	}
}
