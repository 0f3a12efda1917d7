package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/utils/exec"
	"k8s.io/utils/ptr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// pods is a Pods of one pod, whose status a test may change.
type pods struct {
	mu    sync.Mutex
	pod   *corev1.Pod
	alloc string
	tasks map[string]*api.TaskState
}

func (p *pods) Find(ns, name string) (*corev1.Pod, *api.Allocation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pod == nil || p.pod.Namespace != ns || p.pod.Name != name {
		return nil, nil, errors.New("not here")
	}
	if p.alloc == "" {
		return p.pod, nil, nil
	}
	return p.pod, &api.Allocation{ID: p.alloc, TaskStates: p.tasks}, nil
}

func (p *pods) state(s corev1.ContainerState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pod = p.pod.DeepCopy()
	p.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", State: s}}
}

func testPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "1"},
		Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "web"}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "web", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		}},
	}
}

// reviews answers as an API server: token "good" is alice, who may use the kubelet
// API, "weak" is bob, who may not, and "only:x" somebody with the right to nodes/x.
func reviews(t *testing.T) kubernetes.Interface {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/tokenreviews", func(w http.ResponseWriter, r *http.Request) {
		var v authnv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&v)
		name := map[string]string{"good": "alice", "weak": "bob"}[v.Spec.Token]
		if sub, ok := strings.CutPrefix(v.Spec.Token, "only:"); ok {
			name = "only:" + sub
		}
		if name != "" {
			v.Status = authnv1.TokenReviewStatus{Authenticated: true, User: authnv1.UserInfo{Username: name}}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(&v)
	})
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", func(w http.ResponseWriter, r *http.Request) {
		var v authzv1.SubjectAccessReview
		_ = json.NewDecoder(r.Body).Decode(&v)
		at := v.Spec.ResourceAttributes
		v.Status.Allowed = (v.Spec.User == "alice" || v.Spec.User == "only:"+at.Subresource) && at.Resource == "nodes" && at.Name == "burst"
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(&v)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	kube, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

// serve runs a server and returns its URL.
func serve(t *testing.T, nomad *api.Client, p Pods, change func(*Options)) string {
	t.Helper()
	o := Options{
		Node: "burst", NodeIP: "127.0.0.1", Kube: reviews(t), Nomad: nomad, Exec: taskexec.New(nomad), Namespace: "default", Pods: p,
		Runtimes: map[string]translate.Runtime{"": {Driver: "docker"}, "nomad-vm": {Driver: "qemu"}},
		Log:      hclog.NewNullLogger(),
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "https://" + ln.Addr().String()
}

var insecure = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func request(t *testing.T, ctx context.Context, token, u string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := insecure.Do(r)
	if err != nil {
		t.Fatalf("GET %s: %v", u, err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func fetch(t *testing.T, u string) (int, string) {
	t.Helper()
	resp := request(t, t.Context(), "good", u)
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestClosedByDefault(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	u := serve(t, nomad, &pods{}, func(o *Options) { o.List = func() []*corev1.Pod { return []*corev1.Pod{testPod()} } })
	for _, path := range []string{"/pods", "/healthz", "/exec/default/p/web?command=id", "/containerLogs/default/p/web", "/nowhere"} {
		for token, want := range map[string]int{"": 401, "wrong": 401, "weak": 403} {
			if got := request(t, t.Context(), token, u+path).StatusCode; got != want {
				t.Errorf("%s with token %q: %d, want %d", path, token, got, want)
			}
		}
	}
	if code, body := fetch(t, u+"/pods"); code != 200 || !strings.Contains(body, `"kind":"PodList"`) || !strings.Contains(body, `"name":"p"`) {
		t.Errorf("/pods: %d %s", code, body)
	}
	for path, want := range map[string]int{"/nowhere": 404, "/stats/summary": 404, "/configz": 501, "/healthz": 200, "/runningpods/": 200} {
		if code, body := fetch(t, u+path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestNoAuthenticatorNoServer(t *testing.T) {
	nomad, _ := api.NewClient(api.DefaultConfig())
	if _, err := New(Options{Node: "burst", Nomad: nomad, Exec: taskexec.New(nomad), Pods: &pods{}, Log: hclog.NewNullLogger()}); err == nil {
		t.Error("a server without an API server to ask was made")
	}
}

func TestUnavailableLogsAndExec(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	p := &pods{pod: testPod()}
	u := serve(t, nomad, p, nil)
	logs := u + "/containerLogs/default/p/web"
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	for _, tc := range []struct {
		state corev1.ContainerState
		url   string
		code  int
		want  string
	}{
		{waiting(""), logs, 400, `container "web" in pod "p" is waiting to start: ContainerCreating`},
		{waiting("ErrImagePull"), logs, 400, `container "web" in pod "p" is waiting to start: `},
		{waiting(""), logs + "?previous=true", 400, `previous terminated container "web" in pod "p" not found`},
		{waiting(""), logs + "?tailLines=x", 422, "tailLines"},
		{waiting(""), u + "/containerLogs/default/q/web", 404, `pod "q" does not exist`},
		{waiting(""), u + "/containerLogs/default/p/other", 404, `container "other" not found in pod "p"`},
		{waiting(""), u + "/exec/default/p/web?command=id&output=1", 500, `container not found ("web")`},
	} {
		p.state(tc.state)
		if code, body := fetch(t, tc.url); code != tc.code || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %q, want %d %q", tc.url, code, body, tc.code, tc.want)
		}
	}
	p.pod.Spec.RuntimeClassName = ptr.To("nomad-vm")
	p.alloc = "a1"
	p.state(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
	if code, body := fetch(t, u+"/exec/default/p/web?command=id&output=1&tty=1"); code != 400 || !strings.Contains(body, "attach -it") {
		t.Errorf("exec in a VM on a terminal: %d %s", code, body)
	}
}

// shellJob is a job of one raw_exec task that runs a script.
func shellJob(id, script string) *api.Job {
	return &api.Job{
		ID: ptr.To(id), Name: ptr.To(id), Type: ptr.To("batch"), Datacenters: []string{"*"},
		TaskGroups: []*api.TaskGroup{{
			Name:             ptr.To("pod"),
			RestartPolicy:    &api.RestartPolicy{Attempts: ptr.To(0), Mode: ptr.To("fail")},
			ReschedulePolicy: &api.ReschedulePolicy{Attempts: ptr.To(0), Unlimited: ptr.To(false)},
			Tasks: []*api.Task{{
				Name: "web", Driver: "raw_exec",
				Config:    map[string]any{"command": "/bin/sh", "args": []string{"-c", script}},
				LogConfig: &api.LogConfig{MaxFiles: ptr.To(10), MaxFileSizeMB: ptr.To(1)},
				Resources: &api.Resources{CPU: ptr.To(50), MemoryMB: ptr.To(32)},
			}},
		}},
	}
}

// The log and exec routes against a real Nomad.
func TestLive(t *testing.T) {
	agent := nomadtest.Start(t, "")
	t.Run("logs", func(t *testing.T) { testLogs(t, agent) })
	t.Run("rotated logs", func(t *testing.T) { testRotatedLogs(t, agent) })
	t.Run("follow", func(t *testing.T) { testFollow(t, agent) })
	t.Run("exec", func(t *testing.T) { testExec(t, agent) })
}

func testLogs(t *testing.T, agent *nomadtest.Agent) {
	alloc := agent.Run(t, shellJob("logs", `for i in 1 2 3; do echo out $i; done; sleep 1; echo err 1 >&2; printf 'err 2' >&2; sleep 600`))
	p := &pods{pod: testPod(), alloc: alloc.ID}
	u := serve(t, agent.Client, p, nil) + "/containerLogs/default/p/web?"
	const all = "out 1\nout 2\nout 3\nerr 1\nerr 2"
	nomadtest.Eventually(t, 10*time.Second, "the log is complete", func() bool { _, b := fetch(t, u); return b == all })
	for query, want := range map[string]string{
		"tailLines=0":                "",
		"tailLines=1":                "err 2",
		"tailLines=2":                "err 1\nerr 2",
		"tailLines=4":                "out 2\nout 3\nerr 1\nerr 2",
		"tailLines=99":               all,
		"limitBytes=7":               "out 1\no",
		"stream=Stdout&tailLines=2":  "out 2\nout 3\n",
		"stream=Stderr":              "err 1\nerr 2",
		"tailLines=2&limitBytes=100": "err 1\nerr 2",
		"sinceTime=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)): "",
	} {
		if code, body := fetch(t, u+query); code != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", query, code, body, want)
		}
	}
	_, body := fetch(t, u+"timestamps=true&tailLines=1")
	stamp, rest, _ := strings.Cut(body, " ")
	if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || rest != "err 2" || time.Since(at) > time.Minute {
		t.Errorf("with timestamps: %q", body)
	}
}

// Several files of 1 MiB, and chunks that end within lines.
func testRotatedLogs(t *testing.T, agent *nomadtest.Agent) {
	const lines = 60000
	alloc := agent.Run(t, shellJob("rotated", fmt.Sprintf(`seq -f 'line %%012g of a log that fills more than one file' 1 %d; sleep 600`, lines)))
	p := &pods{pod: testPod(), alloc: alloc.ID}
	u := serve(t, agent.Client, p, nil) + "/containerLogs/default/p/web?"
	line := func(i int) string { return fmt.Sprintf("line %012d of a log that fills more than one file\n", i) }
	nomadtest.Eventually(t, 20*time.Second, "the log is complete", func() bool { _, b := fetch(t, u+"tailLines=1"); return b == line(lines) })
	for _, n := range []int{2, 1500, 25000, lines} {
		var want strings.Builder
		for i := lines - n + 1; i <= lines; i++ {
			want.WriteString(line(i))
		}
		if _, body := fetch(t, fmt.Sprintf("%stailLines=%d", u, n)); body != want.String() {
			t.Errorf("the last %d lines: %d bytes, want %d", n, len(body), want.Len())
		}
	}
}

func testFollow(t *testing.T, agent *nomadtest.Agent) {
	alloc := agent.Run(t, shellJob("follow", `echo before; for i in 1 2 3 4; do sleep 0.5; echo out $i; echo err $i >&2; done`))
	p := &pods{pod: testPod(), alloc: alloc.ID}
	u := serve(t, agent.Client, p, nil) + "/containerLogs/default/p/web?follow=true"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := bufio.NewReader(request(t, ctx, "good", u).Body)
	var body string
	for range 9 {
		line, err := log.ReadString('\n')
		if body += line; err != nil {
			t.Fatalf("%v after %q", err, body)
		}
	}
	p.state(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}})
	began := time.Now()
	if more, err := io.ReadAll(log); err != nil || len(more) > 0 {
		t.Errorf("%q came after all there is, %v", more, err)
	}
	for _, want := range []string{"before\n", "out 1\n", "err 1\n", "out 4\n", "err 4\n"} {
		if strings.Count(body, want) != 1 {
			t.Errorf("%q is there %d times in %q", want, strings.Count(body, want), body)
		}
	}
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("the follow ended after %s", took)
	}
	if _, body := fetch(t, u+"&tailLines=1"); strings.Count(body, "\n") != 1 {
		t.Errorf("tail of an ended container: %q", body)
	}
}

func executeCommand(t *testing.T, base, query string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(base + "/exec/default/p/web?" + query)
	if err != nil {
		t.Fatal(err)
	}
	conf := &rest.Config{Host: base, BearerToken: "good", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	ex, err := remotecommand.NewSPDYExecutor(conf, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return ex.StreamWithContext(ctx, o)
}

func testExec(t *testing.T, agent *nomadtest.Agent) {
	alloc := agent.Run(t, shellJob("exec", `sleep 600`))
	base := serve(t, agent.Client, &pods{pod: testPod(), alloc: alloc.ID}, nil)
	sh := func(script string) string { return "command=/bin/sh&command=-c&command=" + url.QueryEscape(script) }

	var out, errOut bytes.Buffer
	err := executeCommand(t, base, sh("cat; echo oops >&2; exit 7")+"&input=1&output=1&error=1",
		remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
	var code utilexec.ExitError
	if !errors.As(err, &code) || code.ExitStatus() != 7 || out.String() != "hello" || errOut.String() != "oops\n" {
		t.Errorf("exec: %v, %q, %q", err, out.String(), errOut.String())
	}
	for i := range 50 {
		out.Reset()
		if err := executeCommand(t, base, "command=/bin/echo&command=hi&output=1", remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "hi\n" {
			t.Errorf("echo %d: %v %q", i, err, out.String())
		}
	}
	out.Reset()
	sizes := &sizeQueue{{Width: 100, Height: 40}}
	err = executeCommand(t, base, sh("sleep 1; stty size")+"&input=1&output=1&tty=1",
		remotecommand.StreamOptions{Stdin: &blocking{}, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
	if err != nil || !strings.Contains(out.String(), "40 100") {
		t.Errorf("terminal: %v %q", err, out.String())
	}
	if err := executeCommand(t, base, "command=/no/such/program&output=1", remotecommand.StreamOptions{Stdout: &out}); err == nil {
		t.Error("a program that is not there ran")
	}
}

// A client that leaves without a word ends the call to Nomad.
func TestHangup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	a, b := net.Pipe()
	c := &hangupConn{Conn: a, cancel: cancel}
	go func() { _ = b.Close() }()
	_, _ = c.Read(make([]byte, 1))
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
		t.Error("the context lives on")
	}
}

type sizeQueue []remotecommand.TerminalSize

func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	if len(*q) == 0 {
		return nil
	}
	s := (*q)[0]
	*q = (*q)[1:]
	return &s
}

type blocking struct{}

func (*blocking) Read([]byte) (int, error) { time.Sleep(time.Hour); return 0, io.EOF }
