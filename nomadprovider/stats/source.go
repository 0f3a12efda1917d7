package stats

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// AtOnce bounds the calls to Nomad that are under way, of one Source.
	AtOnce = 8
	// callTimeout bounds each.
	callTimeout = 4 * time.Second
	// answerBytes bounds what is read of the docker proxy's answer, and
	// complaintBytes of its complaint.
	answerBytes    = 32 << 20
	complaintBytes = 1024
)

// Exec runs commands in tasks, as [taskexec.Runner] does.
type Exec interface {
	Run(ctx context.Context, c taskexec.Command) (code int, err error)
}

// Source asks Nomad, for all virtual nodes of the process; it is safe for
// concurrent use.
type Source struct {
	nomad *api.Client
	exec  Exec
	slots chan struct{}
}

// NewSource makes a Source.
func NewSource(nomad *api.Client, exec Exec) *Source {
	return &Source{nomad: nomad, exec: exec, slots: make(chan struct{}, AtOnce)}
}

// call makes one call when there is room for it.
func (s *Source) call(ctx context.Context, f func(ctx context.Context) error) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// allocation asks what the tasks of an allocation use; there are none once it is
// gone.
func (s *Source) allocation(ctx context.Context, namespace, id string) (tasks map[string]*api.TaskResourceUsage, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		u, err := s.nomad.Allocations().Stats(&api.Allocation{ID: id}, (&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
		switch {
		case gone(err):
		case err != nil:
			return fmt.Errorf("what allocation %s uses: %w", id, err)
		default:
			tasks = u.Tasks
		}
		return nil
	})
	return tasks, err
}

// gone says that Nomad or the client knows no such allocation any more. A client
// that is not connected is told by the same code (command/agent/alloc_endpoint.go,
// allocStats).
func gone(err error) bool {
	var u api.UnexpectedResponseError
	return errors.As(err, &u) && strings.Contains(u.Body(), "Unknown allocation")
}

// client asks what a Nomad client's machine does.
func (s *Source) client(ctx context.Context, id string) (out hostSample, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		var answer hostStats
		q := (&api.QueryOptions{Params: map[string]string{"node_id": id}}).WithContext(ctx)
		if _, err := s.nomad.Raw().Query("/v1/client/stats", &answer, q); err != nil {
			return fmt.Errorf("what Nomad client %s uses: %w", id, err)
		}
		var ok bool
		if out, ok = fromHost(&answer); !ok {
			return fmt.Errorf("no statistics yet of Nomad client %s", id)
		}
		return nil
	})
	return out, err
}

// guest asks the companion beside a VM for its guest's memory.
func (s *Source) guest(ctx context.Context, namespace, allocID string) (m companion.Memory, err error) {
	err = s.call(ctx, func(ctx context.Context) error {
		out, complaint := &limited{left: complaintBytes}, &limited{left: complaintBytes}
		code, err := s.exec.Run(ctx, taskexec.Command{
			Namespace: namespace, AllocID: allocID, Task: translate.CompanionTask, Driver: driverDocker, Handshake: true,
			Argv: []string{"/companion", "vm-memory", translate.VMPlug}, In: bytes.NewReader(nil), Out: out, ErrOut: complaint,
		})
		switch {
		case err != nil:
			return err
		case code != 0:
			return fmt.Errorf("the companion ended with %d: %s", code, bytes.TrimSpace(complaint.Bytes()))
		}
		return json.Unmarshal(out.Bytes(), &m)
	})
	return m, err
}

// proxy asks the docker proxy of a client what containers there use, in one of
// them: a task of an allocation.
func (s *Source) proxy(ctx context.Context, namespace, allocID, task string, want dockerproxy.UsageRequest) (answer dockerproxy.UsageAnswer, err error) {
	line, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	err = s.call(ctx, func(ctx context.Context) error {
		out, complaint := &limited{left: answerBytes}, &limited{left: complaintBytes}
		code, err := s.exec.Run(ctx, taskexec.Command{
			Namespace: namespace, AllocID: allocID, Task: task, Driver: driverDocker, Handshake: true,
			Argv: []string{dockerproxy.CallProgram, dockerproxy.CallUsage},
			// Its end is the line's: that of the input would end the call.
			In: io.MultiReader(bytes.NewReader(append(line, '\n')), nothing{ctx}), Out: out, ErrOut: complaint,
		})
		switch {
		case err != nil:
			return err
		case code != 0:
			return fmt.Errorf("the docker proxy ended with %d: %s", code, bytes.TrimSpace(complaint.Bytes()))
		}
		if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
			return fmt.Errorf("read the docker proxy's answer of %d bytes: %w", out.Len(), err)
		}
		return nil
	})
	return answer, err
}

// containerName is what Nomad's docker driver calls a task's container
// (drivers/docker/driver.go, createContainerConfig).
func containerName(allocID, container string) string {
	return translate.TaskName(container) + "-" + allocID
}

// limited keeps the first bytes of what is written.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.Buffer.Write(p[:n])
	return len(p), nil
}

// nothing is an input that says nothing until ctx ends.
type nothing struct{ ctx context.Context }

func (n nothing) Read([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, io.EOF
}
