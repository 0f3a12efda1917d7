package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// execAtOnce is how many exec sessions are open at a time.
const execAtOnce = 50

// Many exec sessions at once get their own input, outputs and exit codes.
func TestExecAtOnce(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	// None ends before all have begun.
	begun, all := make(chan struct{}, execAtOnce), make(chan struct{})
	go func() {
		defer close(all)
		for range execAtOnce {
			select {
			case <-begun:
			case <-ctx.Done():
			}
		}
	}()
	one := func(i int) error {
		url := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(p.Name).SubResource("exec").
			VersionedParams(&corev1.PodExecOptions{Container: "c", Stdin: true, Stdout: true, Stderr: true, Command: []string{
				"sh", "-c", `echo begun; read -r line; echo "out $line"; echo "err $line" >&2; exit "$0"`, strconv.Itoa(i)}}, scheme.ParameterCodec).URL()
		ex, err := remotecommand.NewWebSocketExecutor(restCfg, "GET", url.String())
		if err != nil {
			return err
		}
		in, typed := io.Pipe()
		go func() {
			<-all
			_, _ = fmt.Fprintf(typed, "line %d\n", i)
			_ = typed.Close()
		}()
		var errOut bytes.Buffer
		out := &firstSeen{want: "begun\n", then: func() { begun <- struct{}{} }}
		err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: &errOut})
		code := 0
		var exit interface{ ExitStatus() int }
		if errors.As(err, &exit) {
			code, err = exit.ExitStatus(), nil
		}
		if got := out.buf.String(); err != nil || code != i || got != fmt.Sprintf("begun\nout line %d\n", i) || errOut.String() != fmt.Sprintf("err line %d\n", i) {
			return fmt.Errorf("session %d: code %d, %q, %q, %v", i, code, got, errOut.String(), err)
		}
		return nil
	}
	errs := make(chan error, execAtOnce)
	begin := time.Now()
	for i := range execAtOnce {
		go func() { errs <- one(i) }()
	}
	for range execAtOnce {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d sessions in %s", execAtOnce, time.Since(begin).Round(time.Millisecond))
}

// bulk is how many MiB are carried into a pod and out again; E2E_EXEC_MIB asks for
// more than the suite has time for.
func bulk() int64 {
	if n, err := strconv.ParseInt(os.Getenv("E2E_EXEC_MIB"), 10, 64); err == nil {
		return n
	}
	return 48
}

// memorySlack is what nomad-kubelet's memory may grow by while more than that is
// carried.
const memorySlack = 32 << 20

// What is carried by exec arrives whole, and is not held in memory. Not parallel:
// others need memory, too.
func TestExecBulk(t *testing.T) {
	ns := namespace(t, kube)
	await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	from := filepath.Join(t.TempDir(), "data")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	sum, size := sha256.New(), bulk()<<20
	if _, err := io.CopyN(io.MultiWriter(f, sum), rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := hex.EncodeToString(sum.Sum(nil))
	grown := watchMemory(t, devcluster.NomadKubelet)

	begin := time.Now()
	kubectl(t, "cp", from, ns+"/p:/tmp/data")
	in := time.Since(begin)
	if got := kubectl(t, "-n", ns, "exec", "p", "--", "sha256sum", "/tmp/data"); strings.Fields(got)[0] != want {
		t.Errorf("what arrived has the sum %q, not %s", got, want)
	}
	begin = time.Now()
	back := from + ".back"
	kubectl(t, "cp", ns+"/p:/tmp/data", back)
	out := time.Since(begin)
	got, err := sumOf(back)
	if err != nil || got != want {
		t.Errorf("what came back has the sum %s, not %s (%v)", got, want, err)
	}
	base, most := grown()
	rate := func(d time.Duration) float64 { return float64(size>>20) / d.Seconds() }
	t.Logf("%d MiB: %.1f MiB/s in, %.1f MiB/s out; nomad-kubelet's memory %d MiB, at most %d MiB", size>>20, rate(in), rate(out), base>>20, most>>20)
	if most-base > memorySlack {
		t.Errorf("nomad-kubelet's memory grew from %d MiB to %d MiB", base>>20, most>>20)
	}
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// resident is a component's resident memory in bytes (proc(5), VmRSS).
func resident(component string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cluster.PID(component)))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	return kib << 10
}

// watchMemory samples a component's resident memory until it is asked what it was
// at first and at most.
func watchMemory(t *testing.T, component string) func() (base, most int64) {
	t.Helper()
	base := resident(component)
	if base == 0 {
		t.Fatalf("%s tells no memory", component)
	}
	stop, result := make(chan struct{}), make(chan int64)
	go func() {
		most := base
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, resident(component))
			case <-stop:
				result <- most
				return
			}
		}
	}()
	return func() (int64, int64) {
		close(stop)
		return base, <-result
	}
}

// descriptors are how many files and connections a component has open.
func descriptors(t *testing.T, component string) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cluster.PID(component)))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// sessions are the goroutines of nomad-kubelet that serve its kubelet API, this
// question's own among them.
func sessions(t *testing.T) (n int, stacks string) {
	t.Helper()
	all := kubectl(t, "get", "--raw", "/api/v1/nodes/nomad/proxy/debug/pprof/goroutine?debug=2")
	var found []string
	for _, stack := range strings.Split(all, "\n\n") {
		for _, room := range []string{"nomadprovider/kubelet.", "nomadprovider/taskexec.", "nomadprovider/forward.", "internal/nomadstream."} {
			if strings.Contains(stack, "nomad-kubelet/"+room) {
				found = append(found, stack)
				break
			}
		}
	}
	return len(found), strings.Join(found, "\n\n")
}

// Clients that are killed leave nothing: neither what they ran in a container nor
// a goroutine or a connection, on any component. Not parallel: it counts what is
// open.
func TestKilledClients(t *testing.T) {
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", `while :; do echo tick; sleep 1; done & httpd -p 127.0.0.1:8080 -h /tmp; `+idle))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	echo := create(t, kube, ns, pod("echo", "cat; "+idle, func(p *corev1.Pod) { p.Spec.Containers[0].Stdin = true }))
	await(t, kube, echo, 60*time.Second, "ready", ready)
	kubectl(t, "-n", ns, "exec", "p", "--", "true") // what is made once is there
	components := []string{devcluster.NomadKubelet, devcluster.Nomad, devcluster.DockerProxy, devcluster.APIServer}
	count := func() map[string]int {
		out := map[string]int{}
		for _, c := range components {
			out[c] = descriptors(t, c)
		}
		return out
	}
	pause(t, 3*time.Second) // what earlier tests opened ends
	before := count()
	goroutines, _ := sessions(t)

	const each = 5
	var killed []*background
	begin := func(in io.Reader, args ...string) *background {
		b := startKubectl(t, in, append([]string{"-n", ns}, args...)...)
		killed = append(killed, b)
		return b
	}
	for i := range each {
		open := func(first string) io.Reader {
			r, w := io.Pipe()
			go func() { _, _ = io.WriteString(w, first) }()
			t.Cleanup(func() { _ = w.Close() })
			return r
		}
		mark := strconv.Itoa(870000 + i)
		begin(nil, "exec", "p", "--", "sh", "-c", "echo begun; sleep "+mark).says(t, "begun", 30*time.Second)
		begin(open(""), "exec", "-i", "p", "--", "sh", "-c", "echo begun; exec cat").says(t, "begun", 30*time.Second)
		begin(open(""), "exec", "-i", "p", "--", "sh", "-c", "echo begun; sleep "+mark+"1").says(t, "begun", 30*time.Second)
		begin(nil, "logs", "-f", "p").says(t, "tick", 30*time.Second)
		begin(open("hello "+mark+"\n"), "attach", "-i", "echo").says(t, "hello "+mark, 30*time.Second)
		f := begin(nil, "port-forward", "p", fmt.Sprintf("%d:8080", ports()+60+i))
		f.says(t, "Forwarding from", 30*time.Second)
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports()+60+i))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		f.says(t, "Handling connection", 30*time.Second)
	}
	term := openTerminal(t, "-n", ns, "exec", "-it", "p", "--", "sh")
	term.shows(t, "/ # ", 30*time.Second)
	term.types(t, "sleep 8799999\r")
	processes := func() string {
		out, _, _ := execIn(t, p, "c", nil, "sh", "-c", `ps -o pid,args | grep -E "sleep 87[0-9]+|[c]at$|[s]h$" | grep -v grep`)
		return strings.TrimSpace(out)
	}
	eventually(t, 10*time.Second, "all of it runs", func() error {
		if out := processes(); strings.Count(out, "sleep 87") < 2*each+1 || strings.Count(out, "cat") < each {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	during := count()
	if n, _ := sessions(t); n < goroutines+len(killed) {
		t.Errorf("%d goroutines while %d sessions are open, %d before", n, len(killed), goroutines)
	}

	for _, b := range killed {
		if err := b.Process.Kill(); err != nil {
			t.Error(err)
		}
	}
	term.kill(t)
	eventually(t, 20*time.Second, "nothing is left in the container", func() error {
		if out := processes(); out != "" {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	eventually(t, 20*time.Second, "no goroutine is left", func() error {
		if n, stacks := sessions(t); n > goroutines {
			return fmt.Errorf("%d, %d before:\n%s", n, goroutines, stacks)
		}
		return nil
	})
	// Connections for the next request are kept, as many as were used at once, until
	// they were idle for 90 s (go-cleanhttp, DefaultPooledTransport); a few are in use.
	const inUse = 2*each - 1
	eventually(t, 150*time.Second, "nothing is left on the components", func() error {
		var errs []error
		for c, n := range count() {
			if n > before[c]+inUse {
				errs = append(errs, fmt.Errorf("%s: %d open, %d before, %d during", c, n, before[c], during[c]))
			}
		}
		return errors.Join(errs...)
	})
	t.Logf("open before %v, during %v, after %v", before, during, count())
}

// A client that is killed while it is attached does not hold up the container,
// which writes on.
func TestKilledAttach(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", `i=0; while :; do head -c 300000 /dev/zero | tr '\0' x; echo; i=$((i+1)); echo $i > /tmp/n; sleep 0.1; done`))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	b := startKubectl(t, nil, "-n", ns, "attach", "p")
	b.says(t, "xxxx", 30*time.Second)
	if err := b.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	written := func() int {
		out, _, _ := execIn(t, p, "c", nil, "cat", "/tmp/n")
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n
	}
	// More than all buffers on the way hold, and sooner than the docker proxy would
	// notice it by itself.
	first := written()
	eventually(t, 20*time.Second, "it writes on", func() error {
		if n := written(); n < first+40 {
			return fmt.Errorf("it has written %d times, %d when its client was killed", n, first)
		}
		return nil
	})
}
