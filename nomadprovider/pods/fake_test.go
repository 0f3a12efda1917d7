package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// nomad records what is asked of Nomad and answers as it is told to.
type nomad struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string
	// answers replaces the answer to a request; a status of 0 hangs.
	answers map[string]answer
	vars    map[string]string // gates by path
	items   map[string]api.VariableItems
	jobs    map[string]bool
	files   map[string]string // of allocations, by path or task/stream
	events  chan string
}

type answer struct {
	status int
	body   string
}

func newNomad(t *testing.T) *nomad {
	n := &nomad{answers: map[string]answer{}, vars: map[string]string{}, items: map[string]api.VariableItems{}, jobs: map[string]bool{}, files: map[string]string{}, events: make(chan string, 100)}
	n.Server = httptest.NewServer(n)
	t.Cleanup(func() { n.CloseClientConnections(); n.Close() })
	return n
}

func (n *nomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/event/stream" {
		n.stream(w, r)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/v1/client/fs/") {
		n.file(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	n.mu.Lock()
	defer n.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	what := r.Method + " " + path
	if r.URL.Query().Get("purge") == "true" {
		what += " purge"
	}
	defer func() { n.requests = append(n.requests, what) }()
	if a, ok := n.answers[what]; ok {
		if a.status == 0 {
			n.mu.Unlock()
			<-r.Context().Done()
			n.mu.Lock()
			return
		}
		http.Error(w, a.body, a.status)
		return
	}
	w.Header().Set("X-Nomad-Index", "10")
	w.Header().Set("X-Nomad-LastContact", "0")
	var out any
	switch {
	case what == "PUT jobs":
		out = n.register(w, body, &what)
	case path == "jobs" || path == "allocations" || strings.HasSuffix(path, "/evaluations") || strings.HasSuffix(path, "/allocations"):
		out = []any{}
	case strings.HasPrefix(path, "var/"):
		out = n.variable(r.Method, strings.TrimPrefix(path, "var/"), body, &what)
	case path == "vars":
		out = n.list(r.URL.Query().Get("prefix"))
	case strings.HasPrefix(what, "GET job/"):
		if !n.jobs[strings.TrimPrefix(path, "job/")] {
			http.Error(w, "job not found", http.StatusNotFound)
			return
		}
		out = api.Job{}
	case strings.HasPrefix(what, "DELETE job/"):
		out = api.JobDeregisterResponse{}
	case strings.HasSuffix(path, "/signal"):
		what += " " + signal(body)
		out = struct{}{}
	case strings.HasSuffix(path, "/restart"):
		var req struct{ TaskName string }
		_ = json.Unmarshal(body, &req)
		what += " " + req.TaskName
		out = struct{}{}
	default:
		http.NotFound(w, r)
		return
	}
	if out != nil {
		_ = json.NewEncoder(w).Encode(out)
	}
}

// unreachable is the content of a file whose client does not answer.
const unreachable = "\x00"

// file answers a read of an allocation's files; it is not recorded.
func (n *nomad) file(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	name := q.Get("path")
	if name == "" {
		name = q.Get("task") + "/" + q.Get("type")
	}
	n.mu.Lock()
	data, ok := n.files[name]
	n.mu.Unlock()
	if !ok {
		http.Error(w, "no such file or directory", http.StatusInternalServerError)
		return
	}
	if data == unreachable {
		http.Error(w, "No path to node", http.StatusInternalServerError)
		return
	}
	if n, err := strconv.Atoi(q.Get("offset")); err == nil && q.Get("origin") == "end" {
		data = data[max(0, len(data)-n):]
	}
	_, _ = io.WriteString(w, data)
}

func signal(body []byte) string {
	var req api.AllocSignalRequest
	_ = json.Unmarshal(body, &req)
	return req.Task + " " + req.Signal
}

func (n *nomad) register(w http.ResponseWriter, body []byte, what *string) any {
	var req api.JobRegisterRequest
	_ = json.Unmarshal(body, &req)
	*what += fmt.Sprintf(" %s enforce=%v@%d", *req.Job.ID, req.EnforceIndex, req.JobModifyIndex)
	if n.jobs[*req.Job.ID] {
		http.Error(w, api.RegisterEnforceIndexErrPrefix+" 0: job already exists", http.StatusInternalServerError)
		return nil
	}
	n.jobs[*req.Job.ID] = true
	return api.JobRegisterResponse{JobModifyIndex: 20}
}

func (n *nomad) variable(method, path string, body []byte, what *string) any {
	switch method {
	case http.MethodPut:
		var v api.Variable
		_ = json.Unmarshal(body, &v)
		n.vars[path], n.items[path] = v.Items[translate.GateItem], v.Items
		*what += " " + v.Items[translate.GateItem]
		return v
	case http.MethodDelete:
		delete(n.vars, path)
	}
	return api.Variable{Path: path, Items: n.items[path]}
}

func (n *nomad) list(prefix string) any {
	out := []api.VariableMetadata{}
	for path := range n.vars {
		if strings.HasPrefix(path, prefix) {
			out = append(out, api.VariableMetadata{Path: path})
		}
	}
	slices.SortFunc(out, func(a, b api.VariableMetadata) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func (n *nomad) stream(w http.ResponseWriter, r *http.Request) {
	for line := "{}"; ; {
		_, _ = io.WriteString(w, line+"\n")
		w.(http.Flusher).Flush()
		select {
		case line = <-n.events:
		case <-r.Context().Done():
			return
		}
	}
}

func (n *nomad) send(topic api.Topic, key string, index uint64, payload any) {
	out, err := json.Marshal(map[string]any{"Index": index, "Events": []any{
		map[string]any{"Topic": topic, "Key": key, "Index": index, "Payload": map[string]any{string(topic): payload}},
	}})
	if err != nil {
		panic(err)
	}
	n.events <- string(out)
}

// take returns what was asked since the last call.
func (n *nomad) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.requests
	n.requests = nil
	return out
}

func (n *nomad) answer(what string, status int, body string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[what] = answer{status, body}
}

func (n *nomad) asIs() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers = map[string]answer{}
}

type testNode struct {
	profile translate.NodeProfile
	volumes map[string][]string
}

func (n testNode) Name() string                    { return n.profile.Name }
func (n testNode) Profile() translate.NodeProfile  { return n.profile }
func (n testNode) HostIP(string) string            { return "192.0.2.1" }
func (n testNode) HostVolume(name string) []string { return n.volumes[name] }

// room is a Controller whose passes the test makes itself.
type room struct {
	*Controller
	t      *testing.T
	kube   *fake.Clientset
	nomad  *nomad
	clock  *clocktesting.FakeClock
	events *record.FakeRecorder
	// volumes are the host volumes of Nomad's clients.
	volumes map[string][]string
	// run stands for what runs in tasks.
	run   func(taskexec.Command) (int, error)
	check func(taskexec.Command) (int, []byte, error)
}

// tasksOf runs commands by the test.
type tasksOf struct{ *room }

func (t tasksOf) Run(_ context.Context, c taskexec.Command) (int, error) { return t.run(c) }

func (t tasksOf) Check(_ context.Context, c taskexec.Command, _ time.Duration, _ int) (int, []byte, error) {
	return t.check(c)
}

var epoch = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newRoom(t *testing.T) *room {
	t.Helper()
	r := &room{t: t, kube: fake.NewClientset(), nomad: newNomad(t), clock: clocktesting.NewFakeClock(epoch), events: record.NewFakeRecorder(1000)}
	r.restart()
	return r
}

// restart makes the Controller anew, as after a kill; what it knew is gone.
func (r *room) restart() {
	r.t.Helper()
	client, err := api.NewClient(&api.Config{Address: r.nomad.URL})
	if err != nil {
		r.t.Fatal(err)
	}
	c := config.Config{VirtualNodes: []config.VirtualNode{{Name: "n"}}}
	c.Complete()
	r.Controller = New(Options{
		Kube: r.kube, Nomad: client, Exec: tasksOf{r}, Cluster: "c1", Nodes: []Node{testNode{config.Profile(c.VirtualNodes[0]), r.volumes}},
		ProbeAgent: "kube-probe/1.35", Recorder: r.events, Clock: r.clock, Log: hclog.NewNullLogger(), OrphanGuard: 10 * time.Minute, Workers: 2,
	})
	r.life = r.t.Context()
}

// pod makes a pod that exists in Kubernetes and in the view of it.
func (r *room) pod(change func(*corev1.Pod)) *corev1.Pod {
	r.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}}
	pod.Spec = corev1.PodSpec{
		NodeName: "n", RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst,
		TerminationGracePeriodSeconds: new(int64(30)),
		Containers:                    []corev1.Container{{Name: "web", Image: "img"}},
	}
	pod.Status.Phase = corev1.PodPending
	if change != nil {
		change(pod)
	}
	created, err := r.kube.CoreV1().Pods("ns").Create(r.t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.look(created)
	return created
}

// look puts the pod into the view of Kubernetes.
func (r *room) look(pod *corev1.Pod) {
	r.t.Helper()
	if err := r.informers[0].GetIndexer().Add(pod); err != nil {
		r.t.Fatal(err)
	}
}

// read is the pod as the API server has it, and puts it into the view.
func (r *room) read(pod *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	got, err := r.kube.CoreV1().Pods(pod.Namespace).Get(r.t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.look(got)
	return got
}

const jobID = "k8s-c1-u"

func podJob() allocs.Job {
	return allocs.Job{ID: jobID, Name: "ns/p", Namespace: "default", CreateIndex: 20, ModifyIndex: 20}
}

// entry is the view of the pod's job with one allocation.
func entry(status string, tasks map[string]*api.TaskState) allocs.Entry {
	return allocs.Entry{Job: podJob(), Allocs: []*api.Allocation{newAlloc("a1", status, tasks)}}
}

func newAlloc(id, status string, tasks map[string]*api.TaskState) *api.Allocation {
	return &api.Allocation{ID: id, CreateIndex: 21, Namespace: "default", NodeID: "client", JobID: jobID, ClientStatus: status, DesiredStatus: "run", TaskStates: tasks}
}

type tasks = map[string]*api.TaskState

func running(restarts uint64, since time.Time) *api.TaskState {
	return &api.TaskState{State: "running", Restarts: restarts, StartedAt: since}
}

func ended(code int, since, at time.Time) *api.TaskState {
	return &api.TaskState{State: "dead", Failed: code != 0, StartedAt: since, Events: []*api.TaskEvent{terminated(code, at)}}
}

func crashed(code int, restarts uint64, since, at time.Time) *api.TaskState {
	return &api.TaskState{State: "pending", Restarts: restarts, StartedAt: since, Events: []*api.TaskEvent{terminated(code, at)}}
}

func unstarted(restarts uint64, at time.Time) *api.TaskState {
	return &api.TaskState{State: "pending", Restarts: restarts, Events: []*api.TaskEvent{
		{Type: api.TaskDriverFailure, Time: at.UnixNano(), DisplayMessage: "Failed to pull"},
	}}
}

func terminated(code int, at time.Time) *api.TaskEvent {
	return &api.TaskEvent{Type: api.TaskTerminated, Time: at.UnixNano(), Details: map[string]string{"exit_code": fmt.Sprint(code)}}
}

// asked fails unless exactly this was asked of Nomad since the last call.
func (r *room) asked(want ...string) {
	r.t.Helper()
	if got := r.nomad.take(); !slices.Equal(got, want) {
		r.t.Errorf("asked of Nomad:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// started is the event of every container that runs; tests that look for others
// pass it over.
const started = "Normal Started"

// event fails unless the next event begins so.
func (r *room) event(want string) {
	r.t.Helper()
	select {
	case got := <-r.events.Events:
		if strings.HasPrefix(got, started) && want != started {
			r.event(want)
			return
		}
		if !strings.HasPrefix(got, want) {
			r.t.Errorf("event %q, want %q", got, want)
		}
	default:
		r.t.Errorf("no event %q", want)
	}
}

func (r *room) noEvent() {
	r.t.Helper()
	select {
	case got := <-r.events.Events:
		if strings.HasPrefix(got, started) {
			r.noEvent()
			return
		}
		r.t.Errorf("event %q", got)
	default:
	}
}

func (r *room) must(again time.Duration, err error) time.Duration {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	return again
}

// patches returns the status patches sent so far.
func (r *room) patches() []string {
	var out []string
	for _, a := range r.kube.Actions() {
		if p, ok := a.(interface{ GetPatch() []byte }); ok && a.GetSubresource() == "status" {
			out = append(out, string(p.GetPatch()))
		}
	}
	return out
}

func (r *room) follows(pod *corev1.Pod, e allocs.Entry) time.Duration {
	r.t.Helper()
	return r.must(r.follow(r.t.Context(), r.read(pod), e))
}

// seen tells the cache of a job, as an event would.
func (r *room) seen(uid types.UID, name string) allocs.Entry {
	j := podJob()
	j.ID, j.Name = translate.JobID("c1", uid), name
	r.cache.Registered(uid, j)
	return allocs.Entry{Job: j}
}

func gate(task string) string { return "var/" + translate.GatePath(jobID, task) }

var ctx = context.Background()
