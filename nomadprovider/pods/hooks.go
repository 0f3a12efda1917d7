package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Lifecycle hooks run at least once, as on the kubelet: a container whose
// postStart hook has ended is told as running, and that is how a later self
// knows.

const (
	reasonPostStart = "FailedPostStartHook"
	reasonPreStop   = "FailedPreStopHook"
	// hookLimit bounds a postStart hook, for which Kubernetes has no limit.
	hookLimit = time.Hour

	// The pauses before a hook is tried again that could not be run, and after
	// how many tries it has failed.
	hookPause    = time.Second
	hookPauseMax = 30 * time.Second
	hookTries    = 12
)

// hookKey names one hook of one run of a container.
type hookKey struct {
	task string
	pre  bool  // preStop
	run  int64 // start of the run, in nanoseconds
}

type hookRun struct {
	done bool
	err  error
	// again is when a hook is tried again that was not heard of, tries is how
	// often it was not, although Nomad was there.
	again time.Time
	tries int
}

// unheardError is of a hook that could not be run or followed to its end. That
// is no failure of the hook: neither a Nomad that is away nor a client whose
// agent starts anew is to cost a container.
type unheardError struct{ error }

func (e *unheardError) Unwrap() error { return e.error }

func unheard(err error) bool {
	var u *unheardError
	return errors.As(err, &u)
}

// over takes what has come of a try; outage says that nobody could have run it.
func (r *hookRun) over(err error, outage bool, now time.Time) {
	r.done, r.err, r.again = true, err, time.Time{}
	if !unheard(err) {
		return
	}
	if !outage {
		r.tries++
	}
	if r.tries < hookTries {
		r.again = now.Add(min(hookPause<<max(r.tries-1, 0), hookPauseMax))
	}
}

func keyOf(task string, ts *api.TaskState, pre bool) hookKey {
	return hookKey{task: task, pre: pre, run: ts.StartedAt.UnixNano()}
}

// containersOf lists the containers that may have hooks and probes: all but the
// ephemeral.
func containersOf(pod *corev1.Pod) []*corev1.Container {
	out := make([]*corev1.Container, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers))
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}

// workPostStart runs the postStart hooks of containers that have started, and
// stops those whose hook failed. It says when to look again.
func (c *Controller) workPostStart(pod *corev1.Pod, alloc *api.Allocation) (again time.Duration) {
	for _, ct := range containersOf(pod) {
		if !c.postStartDue(pod, alloc, ct) {
			continue
		}
		if alloc.TaskStates[translate.CompanionTask] != nil && ct.Lifecycle.PostStart.HTTPGet != nil && alloc.TaskStates[translate.CompanionTask].State != "running" {
			continue // its start comes as an event
		}
		task := translate.TaskName(ct.Name)
		key := keyOf(task, alloc.TaskStates[task], false)
		done, wait, err := c.hook(pod, alloc, ct, key, ct.Lifecycle.PostStart, hookLimit)
		again = sooner(again, wait)
		if done && err != nil {
			if c.killContainer(pod, alloc, ct, c.Clock.Now().Add(graceOf(pod, nil))) {
				c.Recorder.Event(containerRef(pod, ct.Name), corev1.EventTypeWarning, reasonPostStart, "PostStartHook failed: container "+ct.Name+" is stopped")
			}
		}
	}
	return again
}

// postStartDue says whether the container runs and its postStart hook has not
// been seen to end well.
func (c *Controller) postStartDue(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container) bool {
	if ct.Lifecycle == nil || alloc == nil || !translate.HookRuns(ct.Lifecycle.PostStart, c.driver(pod)) {
		return false
	}
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	if ts == nil || ts.State != "running" || toldRunning(pod, ct.Name, ts) {
		return false
	}
	var done bool
	c.with(pod.UID, func(s *podState) {
		if r := s.hooks[keyOf(task, ts, false)]; r != nil {
			done = r.done && r.err == nil
		}
	})
	return !done
}

// startOver says whether the start of a container is done with, well or not: it
// could not be started, has ended, or its postStart hook has.
func (c *Controller) startOver(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container) bool {
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	if ts == nil {
		return false
	}
	if ts.StartedAt.IsZero() {
		_, failed := lastEnd(ts)
		return failed
	}
	if !c.postStartDue(pod, alloc, ct) {
		return true
	}
	var done bool
	c.with(pod.UID, func(s *podState) {
		r := s.hooks[keyOf(task, ts, false)]
		done = r != nil && r.done && r.again.IsZero() // not to be tried again
	})
	return done
}

// toldRunning says whether this run of the container has been told of.
func toldRunning(pod *corev1.Pod, name string, ts *api.TaskState) bool {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if r := list[i].State.Running; list[i].Name == name && r != nil {
				return r.StartedAt.Unix() == ts.StartedAt.Unix()
			}
		}
	}
	return false
}

// hook starts a hook of a run, once unless it was not heard of, and says whether
// and how it has ended, or when to look again; its end puts the pod into the queue.
func (c *Controller) hook(pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, key hookKey, h *corev1.LifecycleHandler, limit time.Duration) (done bool, wait time.Duration, err error) {
	begin := false
	c.with(pod.UID, func(s *podState) {
		r := s.hooks[key]
		if r == nil {
			for k := range s.hooks {
				if k.task == key.task && k.run != key.run {
					delete(s.hooks, k)
				}
			}
			r, begin = &hookRun{}, true
			s.hooks[key] = r
		}
		if !r.again.IsZero() {
			if wait = r.again.Sub(c.Clock.Now()); wait > 0 {
				return
			}
			r.done, r.again, wait, begin = false, time.Time{}, 0, true
		}
		done, err = r.done, r.err
	})
	if !begin {
		return done, wait, err
	}
	c.handlers.Go(func() {
		ctx, cancel := context.WithTimeout(c.life, limit)
		defer cancel()
		err := c.runHandler(ctx, pod, alloc, ct, h)
		if c.life.Err() != nil {
			return
		}
		if err != nil {
			// What a command says may be secret: it is in no event.
			c.Log.Debug("a lifecycle hook failed", "pod", pod.UID, "container", ct.Name, "preStop", key.pre, "error", err)
		}
		outage := c.cache.Current() != nil
		c.with(pod.UID, func(s *podState) {
			if r := s.hooks[key]; r != nil {
				r.over(err, outage, c.Clock.Now())
			}
		})
		c.enqueue(pod.UID)
	})
	return false, 0, nil
}

// runHandler runs one handler to its end.
func (c *Controller) runHandler(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		code, err := c.Exec.Run(ctx, taskexec.Command{
			Namespace: alloc.Namespace, AllocID: alloc.ID, Task: translate.TaskName(ct.Name), Driver: c.driver(pod), Argv: h.Exec.Command,
		})
		switch {
		case err != nil && ctx.Err() == nil:
			return &unheardError{err}
		case err != nil:
			return err
		case code != 0:
			return fmt.Errorf("command %q ended with exit code %d", strings.Join(h.Exec.Command, " "), code)
		}
		return nil
	case h.Sleep != nil:
		select {
		case <-c.Clock.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if h.HTTPGet != nil {
		return c.get(ctx, pod, alloc, ct, h.HTTPGet)
	}
	return errors.New("the handler is neither exec, httpGet nor sleep")
}

// get has the pod's companion make the request.
func (c *Controller) get(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation, ct *corev1.Container, g *corev1.HTTPGetAction) error {
	if alloc.TaskStates[translate.CompanionTask] == nil {
		return errors.New("the pod has no companion (virtualNodes[].companionImage)")
	}
	port, err := portOf(ct, g.Port)
	if err != nil {
		return err
	}
	u, err := url.Parse(g.Path)
	if err != nil { // as the kubelet has it: a path that is none is taken as it is
		u = &url.URL{Path: g.Path}
	}
	u.Scheme = strings.ToLower(string(g.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	host := g.Host
	if host == "" {
		host = c.address(pod, alloc)
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req := companion.Request{URL: u.String(), Header: http.Header{}}
	for _, h := range g.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	in, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return c.askCompanion(ctx, alloc, in, "get")
}

// portOf resolves a port that may be named.
func portOf(ct *corev1.Container, port intstr.IntOrString) (int, error) {
	if port.Type == intstr.Int {
		return port.IntValue(), nil
	}
	for _, p := range ct.Ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("container %s has no port %q", ct.Name, port.StrVal)
}

// address is where the pod's own ports are reached from within it.
func (c *Controller) address(pod *corev1.Pod, alloc *api.Allocation) string {
	if n := alloc.NetworkStatus; n != nil && n.Address != "" && !pod.Spec.HostNetwork {
		return n.Address
	}
	return "127.0.0.1"
}
