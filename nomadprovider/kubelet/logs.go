package kubelet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// logOptions are the query of a log request.
type logOptions struct {
	follow, previous, timestamps bool
	// tail and limit are -1 when not given.
	tail, limit int64
	// since is zero when not given.
	since time.Time
	// only is stdout or stderr when one stream is asked for.
	only string
}

// parseLogOptions reads the query as the kubelet does
// (pkg/kubelet/server/server.go, getContainerLogs).
func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{tail: -1, limit: -1}
	var errs []error
	flag := func(key string, into *bool) {
		if v := q.Get(key); v != "" {
			b, err := strconv.ParseBool(v)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %q is neither true nor false", key, v))
			}
			*into = b
		}
	}
	number := func(key string, least int64, into *int64) {
		if v := q.Get(key); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < least {
				errs = append(errs, fmt.Errorf("%s: %q is not a number of at least %d", key, v, least))
			}
			*into = n
		}
	}
	flag("follow", &o.follow)
	flag("previous", &o.previous)
	flag("timestamps", &o.timestamps)
	if q.Get("tailLines") == "" && q.Get("tail") != "all" {
		number("tail", 0, &o.tail)
	}
	number("tailLines", 0, &o.tail)
	number("limitBytes", 1, &o.limit)
	seconds := int64(0)
	number("sinceSeconds", 1, &seconds)
	if seconds > 0 {
		o.since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("sinceTime: %q is no RFC 3339 time", v))
		}
		o.since = t
	}
	switch v := q.Get("stream"); v {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout:
		o.only = "stdout"
	case corev1.LogStreamStderr:
		o.only = "stderr"
	default:
		errs = append(errs, fmt.Errorf("stream: %q is none of All, Stdout, Stderr", v))
	}
	return o, errors.Join(errs...)
}

// containerLogs serves kubectl logs.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, err := parseLogOptions(r.URL.Query(), time.Now())
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	t, code, err := s.find(r)
	if err != nil {
		fail(w, code, err)
		return
	}
	if err := s.logsAvailable(t, o); err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	l := s.logReader(t)
	streams, err := l.settled(r.Context(), t.ended())
	if err != nil {
		code, err := logError(err, t.pod.Name)
		fail(w, code, err)
		return
	}
	out := newLineWriter(w, o)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	out.flush()
	if err := s.sendLogs(r.Context(), l, only(streams, o.only), t, o, out); err != nil &&
		!errors.Is(err, errLimit) && r.Context().Err() == nil {
		s.o.Log.Warn("a log was cut short", "namespace", t.pod.Namespace, "pod", t.pod.Name, "container", t.container, "error", err)
	}
}

func (s *Server) logReader(t *target) *logReader {
	return &logReader{nomad: s.o.Nomad, namespace: s.o.Namespace, allocID: t.allocID, task: translate.TaskName(t.container)}
}

// sendLogs writes what there is, then follows.
func (s *Server) sendLogs(ctx context.Context, l *logReader, streams []*stream, t *target, o logOptions, out *lineWriter) error {
	starts := make([]int64, len(streams))
	if left := o.tail; left >= 0 {
		for i := len(streams) - 1; i >= 0; i-- {
			at, lines, err := l.tailStart(ctx, streams[i], left)
			if err != nil {
				return err
			}
			starts[i] = at
			left -= lines
		}
	}
	for i, st := range streams {
		if !o.since.IsZero() && st.lastWrite().Before(o.since) {
			continue
		}
		if starts[i] < st.size() {
			if err := out.newLine(); err != nil {
				return err
			}
		}
		out.at = st.lastWrite()
		if err := l.copy(ctx, st, starts[i], out); err != nil {
			return err
		}
	}
	out.at = time.Time{}
	if !o.follow || s.ended(t) {
		return nil
	}
	return l.follow(ctx, streams, func() bool { return s.ended(t) }, out)
}

// logsAvailable says, in the kubelet's words, why there are no logs yet
// (pkg/kubelet/kubelet_pods.go, validateContainerLogStatus).
func (s *Server) logsAvailable(t *target, o logOptions) error {
	name, pod := t.container, t.pod.Name
	if o.previous {
		if t.status != nil && t.status.RestartCount > 0 {
			return fmt.Errorf("previous terminated container %q in pod %q has no log of its own here: "+
				"the log without --previous goes on over restarts", name, pod)
		}
		return fmt.Errorf("previous terminated container %q in pod %q not found", name, pod)
	}
	if s.o.Runtimes[runtimeClass(t.pod)].NoLogs {
		return fmt.Errorf("container %q in pod %q has no logs: its runtime class is configured with noLogs", name, pod)
	}
	if t.status == nil || t.allocID == "" {
		return fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod, waitingReason(t.status))
	}
	st := t.status.State
	if st.Running != nil || st.Terminated != nil || t.status.LastTerminationState.Terminated != nil {
		return nil
	}
	switch reason := waitingReason(t.status); reason {
	case "ErrImagePull":
		return fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", name, pod)
	case "ImagePullBackOff":
		return fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod)
	default:
		return fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod, reason)
	}
}

func waitingReason(st *corev1.ContainerStatus) string {
	if st != nil && st.State.Waiting != nil && st.State.Waiting.Reason != "" {
		return st.State.Waiting.Reason
	}
	return "ContainerCreating"
}

func runtimeClass(p *corev1.Pod) string {
	if p.Spec.RuntimeClassName == nil {
		return ""
	}
	return *p.Spec.RuntimeClassName
}

// ended tells whether the container will not write any more: its pod is gone
// or over, or it has ended and its restart policy leaves it so.
func (s *Server) ended(t *target) bool {
	pod, alloc, err := s.o.Pods.Find(t.pod.Namespace, t.pod.Name)
	if err != nil || pod == nil || pod.UID != t.pod.UID {
		return true
	}
	now := &target{pod: pod, container: t.container, allocID: alloc}
	if now.locate(); now.allocID != t.allocID {
		return true
	}
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return true
	}
	if now.status == nil || now.status.State.Terminated == nil {
		return false
	}
	return !restarts(now, now.status.State.Terminated.ExitCode)
}

// restarts tells whether a container that ended with a code is started again.
func restarts(t *target, code int32) bool {
	if t.pod.DeletionTimestamp != nil || t.ephemeral {
		return false
	}
	list := t.pod.Spec.Containers
	if t.init {
		list = t.pod.Spec.InitContainers
	}
	for i := range list {
		if list[i].Name == t.container {
			return translate.RestartsAfter(t.pod, &list[i], t.init, code)
		}
	}
	return false
}

// logError turns Nomad's answer into one for the user.
func logError(err error, pod string) (int, error) {
	var u api.UnexpectedResponseError
	if errors.As(err, &u) {
		switch u.StatusCode() {
		case http.StatusNotFound:
			return http.StatusNotFound, fmt.Errorf("the logs of pod %q are gone: Nomad has removed its allocation", pod)
		case http.StatusForbidden:
			return http.StatusInternalServerError, errors.New("the virtual node's Nomad token may not read logs: " +
				"its policy needs the capabilities read-fs and read-logs")
		}
	}
	return http.StatusInternalServerError, err
}

func only(streams []*stream, kind string) []*stream {
	if kind == "" {
		return streams
	}
	for _, s := range streams {
		if s.kind == kind {
			return []*stream{s}
		}
	}
	return nil
}
