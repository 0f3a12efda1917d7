package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	crirc "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// exec serves kubectl exec over SPDY or websocket.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	t, code, err := s.find(r)
	if err != nil {
		fail(w, code, err)
		return
	}
	command := r.URL.Query()[corev1.ExecCommandParam]
	if len(command) == 0 {
		fail(w, http.StatusBadRequest, errors.New("no command given"))
		return
	}
	// As the kubelet's ExecInContainer: a container that does not run has no ID.
	if t.allocID == "" || t.status != nil && t.status.State.Running == nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("container not found (%q)", t.container))
		return
	}
	opts, err := crirc.NewOptions(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	if opts.TTY && s.driver(t.pod) == driverQemu {
		fail(w, http.StatusBadRequest, errors.New("a VM's guest agent gives commands no terminal: use kubectl attach -it for the VM's console, exec without -t, or ssh"))
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	crirc.ServeExec(&hangupWriter{w, cancel}, r.WithContext(ctx), &executor{s: s, allocID: t.allocID, stdin: opts.Stdin, driver: s.driver(t.pod)},
		t.pod.Name, t.pod.UID, t.container, command, opts,
		streamIdle, streamCreation, remotecommandconsts.SupportedStreamingProtocols)
}

// executor runs one command by Nomad's exec API.
type executor struct {
	s       *Server
	allocID string
	// stdin is set when the client sends one; a websocket has a stream for it
	// in any case.
	stdin  bool
	driver string
}

var _ crirc.Executor = (*executor)(nil)

// ExecInContainer returns nil for exit code 0 and a bare exit error for
// others: the streaming library does not unwrap.
func (e *executor) ExecInContainer(ctx context.Context, _ string, _ types.UID, container string, cmd []string,
	in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !e.stdin {
		in = nil
	}
	toOut, toErr := gather(&streamWriter{w: out, cancel: cancel}), gather(&streamWriter{w: errOut, cancel: cancel})
	code, err := e.s.o.Exec.Run(ctx, taskexec.Command{
		Namespace: e.s.o.Namespace, AllocID: e.allocID, Task: translate.TaskName(container), Driver: e.driver, Argv: cmd,
		In: in, Out: toOut, ErrOut: toErr, TTY: tty, Sizes: sizes(ctx, resize),
	})
	toOut.end(ctx)
	toErr.end(ctx)
	switch {
	case ctx.Err() != nil:
		return errors.New("the client has left")
	case err != nil:
		return err
	case code != 0:
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// sizes hands on the terminal's sizes without the zero ones that some clients
// send at the end, until ctx or the source ends.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan api.TerminalSize {
	out := make(chan api.TerminalSize)
	if in == nil {
		return out
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-in:
				if !ok {
					return
				}
				if size.Width == 0 || size.Height == 0 {
					continue
				}
				select {
				case out <- api.TerminalSize{Height: int(size.Height), Width: int(size.Width)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// streamWriter ends the command when its output can no longer be delivered,
// which Nomad's API client does not do. It drops output nobody asked for.
type streamWriter struct {
	w      io.Writer
	cancel context.CancelFunc
}

func (s *streamWriter) Write(p []byte) (int, error) {
	if s.w == nil {
		return len(p), nil
	}
	n, err := s.w.Write(p)
	if err != nil {
		s.cancel()
	}
	return n, err
}
