package prober

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
)

// tasks stands for what runs in tasks: the companion is the real one, whose
// network answers as told.
type tasks struct {
	mu     sync.Mutex
	start  time.Time
	calls  []string
	cut    context.CancelFunc // the current call
	mute   bool               // the next calls say nothing
	refuse bool               // the next calls fail
	// answers are those of the network, by container and kind; good without.
	answers map[string]probes.Outcome
	asked   []string
	check   func(taskexec.Command) (int, []byte, error)
}

func (f *tasks) Run(ctx context.Context, c taskexec.Command) (int, error) {
	f.mu.Lock()
	f.calls = append(f.calls, fmt.Sprintf("%v %s/%s %s", time.Since(f.start), c.AllocID, c.Task, strings.Join(c.Argv, " ")))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.cut = cancel
	mute, refuse := f.mute, f.refuse
	f.mu.Unlock()
	switch {
	case refuse:
		return 0, errors.New("no")
	case mute:
		<-ctx.Done()
		return 0, ctx.Err()
	}
	// As Nomad's client: the input is read by a goroutine of its own, and its
	// end is not awaited.
	in, w := io.Pipe()
	go func() { _, _ = io.Copy(w, c.In); w.Close() }()
	go func() { <-ctx.Done(); w.Close() }()
	return 0, companion.Probes(ctx, in, c.Out, f, clock.RealClock{})
}

func (f *tasks) Check(_ context.Context, c taskexec.Command, _ time.Duration, _ int) (int, []byte, error) {
	return f.check(c)
}

func (f *tasks) Probe(_ context.Context, p probes.Probe) (probes.Outcome, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := p.Container + "/" + string(p.Kind)
	f.asked = append(f.asked, fmt.Sprintf("%v %s", time.Since(f.start), name))
	if o := f.answers[name]; o != "" {
		return o, "", nil
	}
	return probes.Success, "", nil
}

type room struct {
	*Prober
	*tasks
	ctx     context.Context
	end     context.CancelFunc
	reports []string
	made    []string
}

func newRoom() *room {
	r := &room{tasks: &tasks{start: time.Now(), answers: map[string]probes.Outcome{}}}
	r.ctx, r.end = context.WithCancel(context.Background())
	r.Prober = New(Options{Exec: r.tasks, Clock: clock.RealClock{}, Agent: "me", Log: hclog.NewNullLogger(), Report: func(uid types.UID, rep probes.Report) {
		r.tasks.mu.Lock()
		defer r.tasks.mu.Unlock()
		result := "-"
		if rep.Result != nil {
			result = fmt.Sprint(*rep.Result)
		}
		r.reports = append(r.reports, fmt.Sprintf("%v %s %s/%s %s %s %s", rep.At.Sub(r.start), uid, rep.Container, rep.Kind, rep.Outcome, result, rep.Output))
	}, Made: func(uid types.UID, a probes.Attempt) {
		r.tasks.mu.Lock()
		defer r.tasks.mu.Unlock()
		r.made = append(r.made, fmt.Sprintf("%s %s/%s %s", uid, a.Container, a.Kind, a.Outcome))
	}})
	return r
}

func (r *room) close() { r.end(); r.Wait() }

func (r *room) until(d time.Duration) {
	time.Sleep(time.Until(r.start.Add(d)))
	synctest.Wait()
}

func (r *room) take(list *[]string) string {
	r.tasks.mu.Lock()
	defer r.tasks.mu.Unlock()
	slices.Sort(*list) // what happens at the same time comes in any order
	out := strings.Join(*list, "\n")
	*list = nil
	return out
}

func (r *room) do(f func()) { r.tasks.mu.Lock(); defer r.tasks.mu.Unlock(); f() }

func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	slices.Sort(lines)
	if w := strings.Join(lines, "\n"); got != w {
		t.Errorf("got\n%s\nwant\n%s", got, w)
	}
}

var target = Target{Namespace: "default", AllocID: "a", Driver: "docker", Task: "pod.companion"}

func network(kind probes.Kind, started time.Time) probes.Probe {
	return probes.Probe{Container: "c", Kind: kind, Run: "1", StartedAt: started, Period: 10 * time.Second, Timeout: time.Second,
		FailureThreshold: 1, Action: probes.Action{TCP: &probes.TCP{Host: "h", Port: 1}}}
}

func TestNetworkProbesGoThroughOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		ready, alive := network(probes.Readiness, r.start), network(probes.Liveness, r.start)
		r.Update(r.ctx, "u", target, []probes.Probe{ready})
		r.until(5 * time.Second)
		r.Update(r.ctx, "u", target, []probes.Probe{ready, alive})
		r.Update(r.ctx, "u", target, []probes.Probe{ready, alive})
		r.until(12 * time.Second)
		r.Update(r.ctx, "u", target, nil)
		r.until(3 * time.Minute) // idle for long
		r.Update(r.ctx, "u", target, []probes.Probe{alive})
		r.until(3*time.Minute + time.Second)
		want(t, r.take(&r.calls), "0s a/pod.companion /companion probes me")
		want(t, r.take(&r.asked), "0s c/Readiness", "10s c/Readiness", "3m0s c/Liveness", "5s c/Liveness")
		want(t, r.take(&r.reports), "0s u c/Readiness success true ")
		r.Update(r.ctx, "u", target, nil)
		r.until(3*time.Minute + companion.ProbesBeat + time.Second)
		want(t, r.take(&r.made), "u c/Liveness success", "u c/Liveness success", "u c/Readiness success", "u c/Readiness success")
		r.Drop("u")
		r.until(5 * time.Minute)
		want(t, r.take(&r.asked))
	})
}

// A call that breaks is made again, with what is known: nothing is reported
// again, nothing is probed before its time, and what is settled not at all.
func TestBrokenCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		r.answers["d/Liveness"] = probes.Failure
		dead := network(probes.Liveness, r.start)
		dead.Container = "d"
		r.Update(r.ctx, "u", target, []probes.Probe{network(probes.Readiness, r.start), network(probes.Liveness, r.start), dead})
		r.until(2 * time.Second)
		want(t, r.take(&r.reports), "0s u c/Readiness success true ", "0s u d/Liveness failure false ")
		r.take(&r.calls)
		r.take(&r.asked)
		r.do(func() { r.cut() })
		r.until(2*time.Second + 500*time.Millisecond)
		r.do(func() { r.refuse = true; r.cut() })
		r.until(5 * time.Second)
		r.do(func() { r.refuse = false })
		r.Update(r.ctx, "u", target, []probes.Probe{network(probes.Readiness, r.start), network(probes.Liveness, r.start), dead})
		r.until(15 * time.Second)
		call := "a/pod.companion /companion probes me"
		want(t, r.take(&r.calls), "2.2s "+call, "2.9s "+call, "3.7s "+call, "5.3s "+call)
		r.tasks.mu.Lock()
		asked := len(r.asked)
		for _, a := range r.asked {
			if !strings.HasPrefix(a, "10s c/") {
				t.Errorf("asked at %s", a)
			}
		}
		r.tasks.mu.Unlock()
		if asked != 2 {
			t.Errorf("asked %d times", asked)
		}
		want(t, r.take(&r.reports))
	})
}

// A call in which nothing is heard any more is given up.
func TestSilentCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		r.mute = true
		r.Update(r.ctx, "u", target, []probes.Probe{network(probes.Liveness, r.start)})
		r.until(time.Second)
		r.do(func() { r.mute = false })
		r.until(companion.ProbesSilence + time.Second)
		call := "a/pod.companion /companion probes me"
		want(t, r.take(&r.calls), "0s "+call, "30.2s "+call)
		want(t, r.take(&r.asked), "30.2s c/Liveness")
	})
}

// Without a task to run them from, network probes wait for it.
func TestWaitsForTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		none := target
		none.Task = ""
		r.Update(r.ctx, "u", none, []probes.Probe{network(probes.Liveness, r.start)})
		r.until(5 * time.Second)
		want(t, r.take(&r.calls))
		r.Update(r.ctx, "u", target, []probes.Probe{network(probes.Liveness, r.start)})
		r.until(6 * time.Second)
		want(t, r.take(&r.asked), "5s c/Liveness")
	})
}

func TestCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		codes := map[string]func() (int, []byte, error){
			"good": func() (int, []byte, error) { return 0, []byte("fine"), nil },
			"bad":  func() (int, []byte, error) { return 2, []byte("broken"), nil },
			"late": func() (int, []byte, error) { return 0, nil, context.DeadlineExceeded },
			"gone": func() (int, []byte, error) { return 0, nil, errors.New("no such allocation") },
		}
		r.check = func(c taskexec.Command) (int, []byte, error) {
			if c.AllocID != "a" || c.Task != "alloc-" || c.Driver != "docker" || c.Namespace != "default" {
				t.Errorf("%+v", c)
			}
			return codes[c.Argv[0]]()
		}
		at := time.Duration(0)
		for _, name := range []string{"good", "bad", "late", "gone"} {
			p := network(probes.Startup, r.start)
			p.Container, p.Run, p.Action = "alloc", name, probes.Action{Exec: []string{name, "x"}}
			r.Update(r.ctx, "u", target, []probes.Probe{p})
			at += time.Second
			r.until(at)
		}
		want(t, r.take(&r.reports),
			"0s u alloc/Startup success true fine",
			"1s u alloc/Startup failure false broken",
			`2s u alloc/Startup failure false command timed out: "late x" timed out after 1s`,
			"3s u alloc/Startup unknown - no such allocation")
		want(t, r.take(&r.made), "u alloc/Startup success", "u alloc/Startup failure", "u alloc/Startup failure", "u alloc/Startup unknown")
		want(t, r.take(&r.calls))
	})
}

// The allocation that takes another's place starts from nothing.
func TestAnotherAllocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom()
		defer r.close()
		r.Update(r.ctx, "u", target, []probes.Probe{network(probes.Readiness, r.start)})
		r.until(time.Second)
		other := target
		other.AllocID = "b"
		r.Update(r.ctx, "u", other, []probes.Probe{network(probes.Readiness, r.start)})
		r.until(2 * time.Second)
		want(t, r.take(&r.reports), "0s u c/Readiness success true ", "1s u c/Readiness success true ")
		if got := fmt.Sprint(r.Pods()); got != "[u]" {
			t.Error(got)
		}
	})
}

func TestSpec(t *testing.T) {
	c := &corev1.Container{
		Name: "web", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", ValueFrom: &corev1.EnvVarSource{}}},
	}
	service := "s"
	for name, h := range map[string]struct {
		h    corev1.ProbeHandler
		want string
	}{
		"exec": {corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x", "$(A)$(B)$(C) $$(A)"}}}, `{"exec":["x","1$(C) $(A)"]}`},
		"http": {corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("http"), Path: "/p", HTTPHeaders: []corev1.HTTPHeader{{Name: "X", Value: "y"}}}},
			`{"http":{"host":"10.0.0.1","port":8080,"path":"/p","headers":[{"name":"X","value":"y"}]}}`},
		"host":     {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "other", Port: intstr.FromString("99")}}, `{"tcp":{"host":"other","port":99}}`},
		"grpc":     {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 5, Service: &service}}, `{"grpc":{"host":"10.0.0.1","port":5,"service":"s"}}`},
		"no port":  {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("none")}}, `{"broken":"port none not found"}`},
		"bad port": {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(70000)}}, `{"broken":"invalid port number: 70000"}`},
		"nothing":  {corev1.ProbeHandler{}, `{"broken":"missing probe handler for container web"}`},
	} {
		t.Run(name, func(t *testing.T) {
			p := Spec(c, probes.Readiness, &corev1.Probe{ProbeHandler: h.h, InitialDelaySeconds: 3}, "10.0.0.1")
			if p.InitialDelay != 3*time.Second || p.Period != 10*time.Second || p.Timeout != time.Second || p.SuccessThreshold != 1 || p.FailureThreshold != 3 {
				t.Errorf("%+v", p)
			}
			if got := asJSON(t, p.Action); got != h.want {
				t.Errorf("got %s\nwant %s", got, h.want)
			}
		})
	}
}

func asJSON(t *testing.T, x any) string {
	t.Helper()
	out, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
