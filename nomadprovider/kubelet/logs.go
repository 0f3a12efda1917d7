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
	send, err := s.findLog(r.Context(), t, o)
	if err != nil {
		code, err := logError(err, t.pod.Name)
		fail(w, code, err)
		return
	}
	out := newLineWriter(w, o)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	err = out.flush()
	if err == nil {
		err = send(out)
	}
	if errors.Is(err, errLimit) || err == nil {
		err = out.flush()
	}
	if err != nil && r.Context().Err() == nil {
		s.o.Log.Warn("a log was cut short", "namespace", t.pod.Namespace, "pod", t.pod.Name, "container", t.container, "error", err)
	}
}

// errNoRun says that the run that is asked for has no log of its own.
var errNoRun = errors.New("no log of this run")

// findLog finds the log that is asked for, and how to send it: by its index where
// there is one, or else as Nomad's files have it.
func (s *Server) findLog(ctx context.Context, t *target, o logOptions) (send func(*lineWriter) error, err error) {
	l := s.logReader(t)
	if s.driver(t.pod) == "docker" {
		runs, err := l.runs(ctx)
		if err != nil {
			return nil, err
		}
		if len(runs) > 0 {
			r, lives := t.pick(runs, o.previous)
			if o.previous && r == nil {
				return nil, fmt.Errorf("%w: the log of the previous run of container %q in pod %q is gone", errNoRun, t.container, t.pod.Name)
			}
			return func(out *lineWriter) error { return s.sendRun(ctx, l, t, r, lives, o, out) }, nil
		}
	}
	if o.previous {
		return nil, fmt.Errorf("%w: previous terminated container %q in pod %q has none here, where no docker proxy keeps runs apart; "+
			"the log without --previous goes on over restarts", errNoRun, t.container, t.pod.Name)
	}
	streams, err := l.settled(ctx, t.ended())
	if err != nil {
		return nil, err
	}
	return func(out *lineWriter) error { return s.sendLogs(ctx, l, only(streams, o.only), t, o, out) }, nil
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
	if err := out.flush(); err != nil {
		return err
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
	if o.previous && (t.status == nil || t.status.LastTerminationState.Terminated == nil) {
		return fmt.Errorf("previous terminated container %q in pod %q not found", name, pod)
	}
	if s.o.Runtimes[runtimeClass(t.pod)].NoLogs {
		return fmt.Errorf("container %q in pod %q has no logs: its runtime class is configured with noLogs", name, pod)
	}
	if ts := t.tasks[translate.TaskName(name)]; ts != nil && !ts.StartedAt.IsZero() {
		return nil // whether or not its status has come back from the API server
	}
	if t.allocID == "" && t.status != nil && t.status.State.Terminated != nil {
		// Nomad may have forgotten the job of a pod that has ended; it knows best.
		t.allocID = translate.ContainerAlloc(t.status.State.Terminated.ContainerID)
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
	now := newTarget(pod, alloc)
	now.container = t.container
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
	if errors.Is(err, errNoRun) {
		return http.StatusBadRequest, err
	}
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
