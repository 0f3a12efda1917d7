package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The kubelet's bounds of a termination message (pkg/kubelet/container/runtime.go,
// MaxContainerTerminationMessage...): of the file, and of the log in its place.
const (
	messageBytes    = 4096
	messageLogBytes = 2048
	messageLogLines = 80
)

// vmEndPatience is how long the exit code of a VM's command is tried to be read
// after its end: what is told of an end stays told.
const vmEndPatience = time.Minute

// qemuFailed is the exit code of a qemu that cannot go on.
const qemuFailed = 1

// readMessages reads the last words of the containers that have ended since
// the last look, before the next run empties the file. The error is of one that
// must not be told of without.
func (c *Controller) readMessages(ctx context.Context, pod *corev1.Pod, alloc *api.Allocation) error {
	driver := c.driver(pod)
	if alloc == nil || !dockerShaped(driver) && driver != driverQemu {
		return nil
	}
	var errs []error
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			errs = append(errs, c.readMessage(ctx, pod, &list[i], alloc, driver))
		}
	}
	for _, task := range []string{translate.VMFetchTask, translate.VMDiskTask} {
		errs = append(errs, c.readMessage(ctx, pod, &corev1.Container{Name: task}, alloc, driverDocker))
	}
	return errors.Join(errs...)
}

// readMessage reads the last words of one container, if it has ended.
func (c *Controller) readMessage(ctx context.Context, pod *corev1.Pod, ct *corev1.Container, alloc *api.Allocation, driver string) error {
	task := translate.TaskName(ct.Name)
	ts := alloc.TaskStates[task]
	if ts == nil {
		return nil
	}
	end := translate.LastEnd(ts)
	if end == nil || ts.StartedAt.UnixNano() > end.Time {
		return nil // it runs again
	}
	var known bool
	c.with(pod.UID, func(s *podState) { known = s.messages[task].End == end.Time })
	if known {
		return nil
	}
	m := translate.Message{End: end.Time}
	var err error
	if driver == driverQemu {
		err = c.vmEnd(ctx, ct, alloc, task, translate.ExitCode(end), &m)
	} else {
		m.Text, err = c.message(ctx, ct, alloc, task, translate.TerminationLog, translate.ExitCode(end) != 0)
	}
	if err != nil {
		c.Log.Debug("the termination message of a container", "pod", pod.UID, "container", ct.Name, "error", err)
		if driver == driverQemu && c.Clock.Since(time.Unix(0, end.Time)) < vmEndPatience {
			return fmt.Errorf("how container %q has ended: %w", ct.Name, err)
		}
		return nil // the next pass tries again
	}
	c.with(pod.UID, func(s *podState) { s.messages[task] = m })
	return nil
}

// vmEnd reads how a VM's command has ended, if the VM has one and that is why it has
// ended. What qemu could not do, such as to be a machine of an unknown type, it says
// on its standard error: the guest's console is the other stream.
func (c *Controller) vmEnd(ctx context.Context, ct *corev1.Container, alloc *api.Allocation, task string, exit int32, m *translate.Message) (err error) {
	if len(ct.Command)+len(ct.Args) > 0 {
		told, err := c.message(ctx, ct, alloc, task, translate.VMExit, false)
		if err != nil {
			return err
		}
		m.Code, m.Text = translate.VMEnd(exit, told)
	}
	switch {
	case m.Text != "" || exit == 0:
	case ct.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError:
		m.Text, err = c.logTail(ctx, alloc, task, "stdout", "stderr")
	case m.Code == nil && exit == qemuFailed:
		m.Text, err = c.logTail(ctx, alloc, task, "stderr")
	}
	return err
}

// message is the container's termination message by its policy.
func (c *Controller) message(ctx context.Context, ct *corev1.Container, alloc *api.Allocation, task, file string, failed bool) (string, error) {
	text, err := c.readFile(ctx, alloc, "/v1/client/fs/readat/", map[string]string{
		"path": path.Join(task, file), "offset": "0", "limit": strconv.Itoa(messageBytes),
	}, messageBytes)
	if err != nil || len(text) > 0 || !failed || ct.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return string(text), err
	}
	return c.logTail(ctx, alloc, task, "stdout", "stderr")
}

// logTail is what stands in the place of a termination message.
func (c *Controller) logTail(ctx context.Context, alloc *api.Allocation, task string, streams ...string) (string, error) {
	var all []byte
	for _, kind := range streams {
		tail, err := c.readFile(ctx, alloc, "/v1/client/fs/logs/", map[string]string{
			"task": task, "type": kind, "origin": "end", "offset": strconv.Itoa(messageLogBytes), "plain": "true",
		}, messageLogBytes)
		if err != nil {
			return "", err
		}
		all = append(all, tail...)
	}
	return lastLines(all), nil
}

// readFile reads a part of the allocation's files; what does not exist is empty.
func (c *Controller) readFile(ctx context.Context, alloc *api.Allocation, endpoint string, params map[string]string, limit int64) ([]byte, error) {
	r, err := c.Nomad.Raw().Response(endpoint+url.PathEscape(alloc.ID), (&api.QueryOptions{Namespace: alloc.Namespace, Params: params}).WithContext(ctx))
	if err != nil {
		var u api.UnexpectedResponseError
		if errors.As(err, &u) && (u.StatusCode() == http.StatusNotFound || strings.Contains(u.Body(), "no such file")) {
			return nil, nil
		}
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, limit))
}

// lastLines bounds what is taken of a log.
func lastLines(log []byte) string {
	if over := len(log) - messageLogBytes; over > 0 {
		log = log[over:]
	}
	lines := bytes.SplitAfter(log, []byte("\n"))
	if n := len(lines); n > 0 && len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	return string(bytes.Join(lines[max(0, len(lines)-messageLogLines):], nil))
}

// driver is the Nomad driver of the pod's containers.
func (c *Controller) driver(pod *corev1.Pod) string {
	class := ""
	if pod.Spec.RuntimeClassName != nil {
		class = *pod.Spec.RuntimeClassName
	}
	n := c.nodes[pod.Spec.NodeName]
	if n == nil {
		return ""
	}
	return n.Profile().Runtimes[class].Driver
}

// Drivers that are known by name.
const (
	driverDocker = "docker"
	driverQemu   = "qemu"
)

func dockerShaped(driver string) bool { return driver == driverDocker || driver == "podman" }
