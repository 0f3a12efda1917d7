package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// table is a mux that knows its patterns, so that a test can walk them all.
type table struct {
	*http.ServeMux
	patterns []string
}

// HandleFunc adds a route.
func (t *table) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	t.patterns = append(t.patterns, pattern)
	t.ServeMux.HandleFunc(pattern, handler)
}

func (s *Server) routes() *table {
	mux := &table{ServeMux: http.NewServeMux()}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /pods/", s.pods)
	mux.HandleFunc("GET /runningpods/", s.runningPods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, uid := range []string{"", "/{uid}"} {
		mux.HandleFunc("GET /exec/{namespace}/{pod}"+uid+"/{container}", s.exec)
		mux.HandleFunc("POST /exec/{namespace}/{pod}"+uid+"/{container}", s.exec)
		mux.HandleFunc("GET /attach/{namespace}/{pod}"+uid+"/{container}", s.attach)
		mux.HandleFunc("POST /attach/{namespace}/{pod}"+uid+"/{container}", s.attach)
		mux.HandleFunc("GET /portForward/{namespace}/{pod}"+uid, s.portForward)
		mux.HandleFunc("POST /portForward/{namespace}/{pod}"+uid, s.portForward)
	}
	s.metricsRoutes(mux)
	// Of the process, which all virtual nodes share (pkg/kubelet/server/server.go,
	// InstallProfilingHandler).
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for _, p := range []string{"/run/", "/logs/", "/checkpoint/", "/configz"} {
		mux.HandleFunc(p, func(w http.ResponseWriter, r *http.Request) {
			fail(w, http.StatusNotImplemented, fmt.Errorf("%s is not there yet on this virtual node", r.URL.Path))
		})
	}
	return mux
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	s.writePods(w, func(*corev1.Pod) bool { return true })
}

// runningPods are those with a container that runs.
func (s *Server) runningPods(w http.ResponseWriter, _ *http.Request) {
	s.writePods(w, func(p *corev1.Pod) bool {
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil {
				return true
			}
		}
		return false
	})
}

func (s *Server) writePods(w http.ResponseWriter, keep func(*corev1.Pod) bool) {
	if s.o.List == nil {
		fail(w, http.StatusNotImplemented, errors.New("the list of pods is not served"))
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.o.List() {
		if keep(p) {
			list.Items = append(list.Items, *p)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(&list); err != nil {
		s.o.Log.Debug("the list of pods was not sent", "error", err)
	}
}

func fail(w http.ResponseWriter, code int, err error) { http.Error(w, err.Error(), code) }

// target is the container that a request is about.
type target struct {
	pod       *corev1.Pod
	allocID   string
	container string
	// tasks are the states of the allocation's tasks, by name.
	tasks  map[string]*api.TaskState
	status *corev1.ContainerStatus
	// kind is where in the pod the container is.
	init, ephemeral bool
}

func newTarget(pod *corev1.Pod, alloc *api.Allocation) *target {
	t := &target{pod: pod}
	if alloc != nil {
		t.allocID, t.tasks = alloc.ID, alloc.TaskStates
	}
	return t
}

// find looks up the container in the path. Its error goes with an HTTP code
// and is worded as the kubelet's.
func (s *Server) find(r *http.Request) (*target, int, error) {
	t, code, err := s.findPod(r)
	if err != nil {
		return nil, code, err
	}
	if t.container = r.PathValue("container"); !t.locate() {
		return nil, http.StatusNotFound, fmt.Errorf("container %q not found in pod %q", t.container, t.pod.Name)
	}
	return t, 0, nil
}

// findPod looks up the pod in the path.
func (s *Server) findPod(r *http.Request) (*target, int, error) {
	ns, name := r.PathValue("namespace"), r.PathValue("pod")
	pod, alloc, err := s.o.Pods.Find(ns, name)
	if err != nil || pod == nil {
		s.o.Log.Debug("a pod was asked for that is not here", "namespace", ns, "pod", name, "error", err)
		return nil, http.StatusNotFound, fmt.Errorf("pod %q does not exist", name)
	}
	if uid := r.PathValue("uid"); uid != "" && string(pod.UID) != uid {
		return nil, http.StatusNotFound, fmt.Errorf("pod %q does not exist", name)
	}
	return newTarget(pod, alloc), 0, nil
}

// locate finds the container in the pod's spec and status.
func (t *target) locate() bool {
	found := false
	for _, c := range t.pod.Spec.Containers {
		found = found || c.Name == t.container
	}
	for _, c := range t.pod.Spec.InitContainers {
		if c.Name == t.container {
			found, t.init = true, true
		}
	}
	for _, c := range t.pod.Spec.EphemeralContainers {
		if c.Name == t.container {
			found, t.ephemeral = true, true
		}
	}
	st := t.pod.Status
	for _, list := range [][]corev1.ContainerStatus{st.ContainerStatuses, st.InitContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == t.container {
				t.status = &list[i]
			}
		}
	}
	if t.ephemeral {
		// Not the pod's allocation, but one of its own.
		t.allocID, t.tasks = "", nil
		if t.status != nil {
			t.allocID = translate.ContainerAlloc(t.status.ContainerID)
		}
	}
	return found
}

// ended is when the container has ended, zero while it has not.
func (t *target) ended() time.Time {
	if t.status == nil || t.status.State.Terminated == nil {
		return time.Time{}
	}
	return t.status.State.Terminated.FinishedAt.Time
}

// driver is the Nomad task driver that the pod runs on.
func (s *Server) driver(p *corev1.Pod) string {
	class := ""
	if p.Spec.RuntimeClassName != nil {
		class = *p.Spec.RuntimeClassName
	}
	return s.o.Runtimes[class].Driver
}
