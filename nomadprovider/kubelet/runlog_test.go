package kubelet

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Both streams in the order in which they were written, and all that can be asked
// of them.
func TestLogOfARun(t *testing.T) {
	r := newRig(t)
	r.files.late = 50 * time.Millisecond
	run := r.start()
	var times []time.Time
	for i := range 10 {
		times = append(times, run.say(byte(i%2+1), fmt.Sprintf("line %d\n", i)))
		time.Sleep(time.Millisecond)
	}
	lines := func(from, to int) (s string) {
		for i := from; i < to; i++ {
			s += fmt.Sprintf("line %d\n", i)
		}
		return s
	}
	until(t, 5*time.Second, "the log is told", func() bool { return r.get("") == lines(0, 10) })
	for query, want := range map[string]string{
		"tailLines=0":               "",
		"tailLines=1":               lines(9, 10),
		"tailLines=5":               lines(5, 10),
		"tailLines=10":              lines(0, 10),
		"tailLines=99":              lines(0, 10),
		"limitBytes=10":             "line 0\nlin",
		"limitBytes=14":             lines(0, 2),
		"tailLines=2&limitBytes=3":  "lin",
		"stream=Stdout":             "line 0\nline 2\nline 4\nline 6\nline 8\n",
		"stream=Stderr&tailLines=2": "line 7\nline 9\n",
		"sinceTime=" + url.QueryEscape(times[7].Add(-100*time.Microsecond).Format(time.RFC3339Nano)): lines(7, 10),
		"sinceTime=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)):               "",
		"tailLines=1&sinceTime=" + url.QueryEscape(times[0].Format(time.RFC3339)):                    lines(9, 10),
		"sinceSeconds=3600": lines(0, 10),
	} {
		if got := r.get(query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(r.get("timestamps=true")), "\n") {
		stamp, text, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || !at.Equal(times[i].Truncate(time.Microsecond)) || text != fmt.Sprintf("line %d", i) {
			t.Errorf("%q, said at %s", line, times[i].UTC().Format(time.RFC3339Nano))
		}
	}
	run.say(1, "no end")
	until(t, 5*time.Second, "the line without an end", func() bool { return r.get("tailLines=1") == "no end" })
	run.say(1, " yet")
	until(t, 5*time.Second, "more of it", func() bool { return r.get("tailLines=1") == "no end yet" })
	r.end(run, false)
	if got := r.get("tailLines=2"); got != "line 9\nno end yet" {
		t.Errorf("at the end: %q", got)
	}
}

// The kubelet shows one run at a time.
func TestRuns(t *testing.T) {
	r := newRig(t)
	previous := func() string { _, body := fetch(t, r.url+"previous=true"); return body }
	run := r.start()
	if got := r.get(""); got != "" {
		t.Errorf("a run that has said nothing: %q", got)
	}
	run.say(1, "first\n")
	if got := previous(); got != "previous terminated container \"web\" in pod \"p\" not found\n" {
		t.Error(got)
	}
	until(t, 5*time.Second, "the first run's", func() bool { return r.get("") == "first\n" })
	r.end(run, true)
	for _, query := range []string{"", "previous=true", "previous=true&follow=true", "follow=true"} {
		if got := r.get(query); got != "first\n" {
			t.Errorf("%q between two runs: %q", query, got)
		}
	}
	run = r.start()
	if got := r.get(""); got != "" {
		t.Errorf("the second run has said nothing: %q", got)
	}
	run.say(2, "second\n")
	until(t, 5*time.Second, "the second run's", func() bool { return r.get("") == "second\n" })
	if got := r.get("previous=true"); got != "first\n" {
		t.Errorf("the run before: %q", got)
	}
	r.end(run, true)
	run = r.start()
	run.say(1, "third\n")
	r.end(run, false)
	// It has ended for good, and was not waited for again.
	if now, before := r.get(""), r.get("previous=true"); now != "third\n" || before != "second\n" {
		t.Errorf("%q before %q", now, before)
	}
}

// A log that Nomad has removed the beginning of, of lines of all lengths, written
// at all speeds.
func TestLogOfManyFiles(t *testing.T) {
	r := newRig(t)
	r.files.most = 1 << 20
	run := r.start()
	type said struct {
		stream byte
		text   string
	}
	var all []said
	rng := rand.New(rand.NewPCG(1, 2))
	at := time.Now()
	for size := 0; size < 9<<20; {
		s := said{byte(1 + rng.IntN(5)/4), fmt.Sprintf("%d %s\n", len(all), strings.Repeat("x", rng.IntN(1<<(1+rng.IntN(12)))))}
		all = append(all, s)
		size += len(s.text)
		at = at.Add(time.Duration(rng.IntN(200)) * time.Microsecond)
		run.sayAt(s.stream, s.text, at)
	}
	check := func(when string) {
		t.Helper()
		// What is in the files, in the order in which it was said.
		var first [2]string
		for k := range first {
			for i := max(0, r.files.index[k]-2); i <= r.files.index[k] && first[k] == ""; i++ {
				data, err := os.ReadFile(r.files.path(k, i))
				if err != nil {
					t.Fatal(err)
				}
				first[k], _, _ = strings.Cut(string(data), "\n")
			}
		}
		var want []string
		var found [2]bool
		for _, s := range all {
			k := s.stream - 1
			if found[k] = found[k] || s.text == first[k]+"\n"; found[k] {
				want = append(want, s.text)
			}
		}
		if got := r.get(""); got != strings.Join(want, "") {
			t.Errorf("%s: %d bytes from %.20q, want %d from %.20q", when, len(got), got, len(strings.Join(want, "")), want[0])
		}
		for _, n := range []int{1, 10, 1000, 5000} {
			if got, want := r.get(fmt.Sprintf("tailLines=%d", n)), strings.Join(want[len(want)-n:], ""); got != want {
				t.Errorf("%s: the last %d lines: %d bytes, want %d", when, n, len(got), len(want))
			}
		}
		t.Logf("%s: %d of %d lines are there", when, len(want), len(all))
	}
	until(t, 20*time.Second, "all is written", func() bool { return strings.HasSuffix(r.get("tailLines=1"), all[len(all)-1].text) })
	check("while it runs")
	r.end(run, true)
	check("after its end")
	run = r.start()
	run.say(1, "new\n")
	until(t, 5*time.Second, "the next run's", func() bool { return r.get("") == "new\n" })
	if got := r.get("previous=true&tailLines=1"); got != all[len(all)-1].text {
		t.Errorf("the run before ends with %q", got)
	}
}

// A follow shows what comes in its order, outlives its agent's restart, and ends
// with the run.
func TestFollowARun(t *testing.T) {
	r := newRig(t)
	r.files.late = 100 * time.Millisecond
	run := r.start()
	run.say(1, "before\n")
	want := "before\n"
	got, over := r.collect("follow=true")
	tail, tailOver := r.collect("follow=true&tailLines=0&timestamps=true")
	say := func(from, to int) {
		for i := from; i < to; i++ {
			text := fmt.Sprintf("line %d\n", i)
			run.say(byte(i%3/2+1), text)
			want += text
			time.Sleep(time.Millisecond)
		}
		until(t, 20*time.Second, "the log", func() bool { return got() == want })
	}
	until(t, 5*time.Second, "what was there", func() bool { return got() == want })
	say(0, 50)
	r.fs.restart()
	for i := 50; i < 60; i++ {
		text := fmt.Sprintf("line %d\n", i)
		run.say(2, text)
		want += text
	}
	until(t, 20*time.Second, "each of the agent's refusals", func() bool { return r.fs.refused.Load() >= 3 })
	r.fs.away.Store(false)
	say(60, 70)
	run.say(1, "last words")
	want += "last words"
	began := time.Now()
	r.end(run, true)
	next := r.start()
	next.say(1, "of the next run\n")
	<-over
	<-tailOver
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the follow ended %s after the run", took)
	}
	if got() != want {
		t.Errorf("%q, want %q", got(), want)
	}
	var texts string
	for i, line := range strings.SplitAfter(tail(), "\n") {
		stamp, text, _ := strings.Cut(line, " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || time.Since(at) > time.Minute {
			t.Errorf("line %d: %q", i, line)
		}
		texts += text
	}
	if want := strings.TrimPrefix(want, "before\n"); texts != want && "before\n"+want != texts {
		t.Errorf("from now on: %q", texts)
	}
	if body := r.get("follow=true&limitBytes=6"); body != "of the" {
		t.Errorf("a follow with a limit: %q", body)
	}
}

// A follow passes from file to file, and waits for what Nomad writes late.
func TestFollowFromFileToFile(t *testing.T) {
	r := newRig(t)
	r.files.most = 1 << 20
	run := r.start()
	got, over := r.collect("follow=true")
	var want strings.Builder
	say := func(n, size int) {
		for i := range n {
			text := fmt.Sprintf("%d of %d: %s\n", i, n, strings.Repeat("x", size))
			run.say(byte(i%7/6+1), text)
			want.WriteString(text)
			if i%100 == 99 {
				time.Sleep(20 * time.Millisecond) // of more at once the order is not kept
			}
		}
	}
	for range 8 {
		say(500, 1000)
		until(t, 20*time.Second, "the log", func() bool { return len(got()) == want.Len() })
	}
	r.files.hold.Lock()
	say(6, 100) // of one stream: what is as late as that is no longer sorted
	time.Sleep(settle + 500*time.Millisecond)
	r.files.hold.Unlock()
	say(1, 1)
	r.end(run, false)
	<-over
	if got() != want.String() {
		t.Errorf("%d bytes, want %d", len(got()), want.Len())
	}
	if r.files.index[0] < 3 {
		t.Errorf("%d files", r.files.index[0])
	}
}

// The log of a pod that has ended goes when Nomad forgets its job.
func TestLogThatIsGone(t *testing.T) {
	r := newRig(t)
	run := r.start()
	run.say(1, "last words\n")
	r.end(run, false)
	r.tell(func(_ *api.TaskState, st *corev1.ContainerStatus) {
		st.State.Terminated.ContainerID = translate.ContainerID("a", "web")
	})
	r.pods.alloc = "" // the view no longer has it
	if got := r.get(""); got != "last words\n" {
		t.Errorf("still there: %q", got)
	}
	r.fs.gone.Store(true)
	if code, body := fetch(t, r.url); code != http.StatusNotFound || !strings.Contains(body, `the logs of pod "p" are gone`) {
		t.Errorf("%d %q", code, body)
	}
}

// Two hundred follow at once, leave, and leave nothing behind.
func TestManyFollowers(t *testing.T) {
	const n = 200
	r := newRig(t)
	run := r.start()
	run.say(1, "before\n")
	until(t, 5*time.Second, "the log is told", func() bool { return r.get("") == "before\n" })
	insecure.CloseIdleConnections()
	r.nomad.CloseIdleConnections()
	before := runtime.NumGoroutine()
	var logs []func() string
	var over []chan struct{}
	for range n {
		l, o := r.collect("follow=true")
		logs, over = append(logs, l), append(over, o)
	}
	want := "before\n"
	all := func() bool {
		for _, l := range logs {
			if l() != want {
				return false
			}
		}
		return true
	}
	until(t, 60*time.Second, "all have what was there", all)
	for i := range 5 {
		text := fmt.Sprintf("line %d\n", i)
		run.say(byte(i%2+1), text)
		want += text
	}
	until(t, 60*time.Second, "all have what came", all)
	calls := r.fs.calls.Load()
	time.Sleep(time.Second)
	if n := r.fs.calls.Load() - calls; n > 20 {
		t.Errorf("%d calls in a second in which nothing came", n)
	}
	r.end(run, false)
	for _, o := range over {
		<-o
	}
	// Connections wait for their next use, of which each end has goroutines.
	until(t, 30*time.Second, "no goroutine is left", func() bool {
		insecure.CloseIdleConnections()
		r.nomad.CloseIdleConnections()
		return runtime.NumGoroutine() <= before
	})
}

// A client that does not read keeps its own log waiting, not the memory, and
// nobody else.
func TestClientThatStalls(t *testing.T) {
	r := newRig(t)
	run := r.start()
	line := strings.Repeat("x", 16<<10) + "\n"
	const lines = 4096 // 64 MB
	resp := request(t, t.Context(), "good", r.url+"follow=true")
	defer resp.Body.Close()
	r.files.most = 1 << 30
	for range lines {
		run.say(1, line)
	}
	until(t, 60*time.Second, "it is written", func() bool { return r.files.size[0] == int64(lines*len(line)) })
	var sent int64
	until(t, 60*time.Second, "Nomad is no longer asked", func() bool {
		was := sent
		sent = r.fs.sent.Load()
		time.Sleep(300 * time.Millisecond)
		return sent > 0 && sent == was
	})
	if sent > 24<<20 {
		t.Errorf("%d bytes were read for a client that reads none", sent)
	}
	if got := r.get("tailLines=1"); got != line {
		t.Errorf("another client got %d bytes", len(got))
	}
	r.end(run, false)
	buf := make([]byte, 1<<20)
	for n := 0; n < lines*len(line); {
		m, err := resp.Body.Read(buf)
		if n += m; err != nil {
			t.Fatalf("the log ended after %d bytes: %v", n, err)
		}
	}
	if resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}
