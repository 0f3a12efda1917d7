package translate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nonRootRule begins what the docker proxy says of an image that does not keep it.
const nonRootRule = "container has runAsNonRoot"

// startFailure names a failed start in the kubelet's terms.
func startFailure(c *corev1.Container, e *api.TaskEvent, tries uint64) *corev1.ContainerStateWaiting {
	msg := eventMessage(e)
	lower := strings.ToLower(msg)
	switch {
	case e.Type == api.TaskArtifactDownloadFailed, strings.Contains(lower, "failed to pull"),
		strings.Contains(lower, "failed to download image"), strings.Contains(lower, "pull access denied"):
		return pullFailure(c, msg, tries)
	case strings.Contains(msg, nonRootRule):
		return &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: msg[strings.Index(msg, nonRootRule):]}
	case e.Type == api.TaskSetupFailure, e.Type == api.TaskFailedValidation, strings.Contains(lower, "failed to parse config"):
		return &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: msg}
	case strings.Contains(lower, "failed to create container"):
		return &corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: msg}
	}
	return &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: msg}
}

// pullFailure tells of an image that could not be had.
func pullFailure(c *corev1.Container, why string, tries uint64) *corev1.ContainerStateWaiting {
	if tries > 1 {
		return &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: fmt.Sprintf("Back-off pulling image %q: %s", c.Image, why)}
	}
	return &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: why}
}

func eventMessage(e *api.TaskEvent) string {
	if e.DisplayMessage != "" {
		return e.DisplayMessage
	}
	return e.Message
}

func lastEvent(ts *api.TaskState, kinds ...string) *api.TaskEvent {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if slices.Contains(kinds, ts.Events[i].Type) {
			return ts.Events[i]
		}
	}
	return nil
}

// LastEnd is the event of the task's last exit that Nomad still has, nil for
// none.
func LastEnd(ts *api.TaskState) *api.TaskEvent { return lastEvent(ts, api.TaskTerminated) }

// endBefore is the event of the exit before the run that a task is in, nil for
// none. A run may have ended that Nomad still tells as running: what becomes of
// the task comes in a moment.
func endBefore(ts *api.TaskState) *api.TaskEvent {
	for _, e := range slices.Backward(ts.Events) {
		if e.Type == api.TaskTerminated && (ts.State != taskRunning || e.Time < ts.StartedAt.UnixNano()) {
			return e
		}
	}
	return nil
}

// termination is the last exit of a container as the kubelet tells it.
func (v *view) termination(c *corev1.Container, ts *api.TaskState, id string) *corev1.ContainerStateTerminated {
	return v.terminationBy(c, ts, LastEnd(ts), id)
}

// terminationBy is the exit that an event tells of, nil for no event.
func (v *view) terminationBy(c *corev1.Container, ts *api.TaskState, e *api.TaskEvent, id string) *corev1.ContainerStateTerminated {
	if e == nil {
		return nil
	}
	t := &corev1.ContainerStateTerminated{
		ExitCode:    ExitCode(e),
		FinishedAt:  metaTime(time.Unix(0, e.Time)),
		ContainerID: id,
	}
	// The same start that was told while it ran: its event bears another time.
	if !ts.StartedAt.IsZero() && ts.StartedAt.UnixNano() <= e.Time {
		t.StartedAt = metaTime(ts.StartedAt)
	} else if start := startBefore(ts, e.Time); start != nil {
		t.StartedAt = metaTime(time.Unix(0, start.Time))
	}
	if m := v.facts.Messages[TaskName(c.Name)]; m.End == e.Time {
		t.Message = m.Text
		if m.Code != nil {
			t.ExitCode = *m.Code
		}
	}
	switch {
	case e.Details["oom_killed"] == "true":
		t.Reason = "OOMKilled"
	case t.ExitCode == 0:
		t.Reason = reasonCompleted
	default:
		t.Reason = reasonError
	}
	return t
}

func startBefore(ts *api.TaskState, when int64) *api.TaskEvent {
	for i := len(ts.Events) - 1; i >= 0; i-- {
		if e := ts.Events[i]; e.Type == api.TaskStarted && e.Time <= when {
			return e
		}
	}
	return nil
}

// ExitCode is the exit code that a Terminated event tells.
func ExitCode(e *api.TaskEvent) int32 {
	if n, err := strconv.Atoi(e.Details["exit_code"]); err == nil {
		return int32(n)
	}
	return int32(e.ExitCode)
}

// VMEnd reads what a VM has written to [VMExit]. code is nil unless the VM, which
// ended with exit, has ended as its command did: qemu makes a code odd, and a guest
// that cannot shut down in order crashes, which is code 1.
func VMEnd(exit int32, told string) (code *int32, message string) {
	line, message, whole := strings.Cut(told, "\n")
	n, err := strconv.ParseUint(strings.TrimSpace(line), 10, 8)
	c := int32(n)
	if !whole || err != nil || exit != 0 && c == 0 || exit != c && exit != c|1 && exit != 1 {
		return nil, ""
	}
	return &c, message
}

func metaTime(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}
