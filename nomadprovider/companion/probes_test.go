package companion

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
)

type always probes.Outcome

func (a always) Probe(context.Context, probes.Probe) (probes.Outcome, string, error) {
	return probes.Outcome(a), "", nil
}

// prober is a running Probes with its ends.
type prober struct {
	in   *io.PipeWriter
	out  *bufio.Reader
	done chan error
}

func startProbes(t *testing.T, p probes.Prober) *prober {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	r := &prober{in: inW, out: bufio.NewReader(outR), done: make(chan error, 1)}
	go func() {
		r.done <- Probes(t.Context(), inR, outW, p, clock.RealClock{})
		outW.Close()
	}()
	return r
}

func (r *prober) send(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func (r *prober) line(t *testing.T) string {
	t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func list(t *testing.T, list ...probes.Probe) string {
	t.Helper()
	out, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestProbesReportsAndEndsWithItsInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startProbes(t, always(probes.Failure))
		if l := r.line(t); l != "" {
			t.Errorf("the first line is %q", l)
		}
		p := probes.Probe{Container: "c", Kind: probes.Liveness, Run: "7", StartedAt: time.Now(), Period: time.Second, FailureThreshold: 2}
		r.send(t, list(t, p))
		for _, changed := range []bool{false, true} {
			var got probes.Report
			if err := json.Unmarshal([]byte(r.line(t)), &got); err != nil || got.Run != "7" || got.Outcome != probes.Failure || (got.Result != nil) != changed {
				t.Errorf("%+v, %v", got, err)
			}
		}
		// The same list again leaves it on hold, an empty one ends it.
		r.send(t, list(t, p))
		r.send(t, "[]")
		// The next sign of life counts the attempts, and each once.
		const made = `{"attempts":[{"container":"c","kind":"Liveness","outcome":"failure","took":0},{"container":"c","kind":"Liveness","outcome":"failure","took":0}]}`
		for _, want := range []string{made, ""} {
			if l := r.line(t); l != want {
				t.Errorf("got %q", l)
			}
		}
		r.in.Close()
		if err := <-r.done; err != nil {
			t.Error(err)
		}
	})
}

func TestProbesGivesUpASilentInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startProbes(t, always(probes.Success))
		start := time.Now()
		go io.Copy(io.Discard, r.out)
		time.Sleep(ProbesBeat)
		r.send(t, "")
		err := <-r.done
		if took := time.Since(start); err == nil || took != ProbesBeat+ProbesSilence {
			t.Errorf("%v after %s", err, took)
		}
		r.in.Close()
	})
}

func TestProbesRefusesNonsense(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startProbes(t, always(probes.Success))
		go io.Copy(io.Discard, r.out)
		r.send(t, "nonsense")
		if err := <-r.done; err == nil {
			t.Error("no error")
		}
		r.in.Close()
	})
}
