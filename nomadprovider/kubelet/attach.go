package kubelet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	crirc "k8s.io/kubelet/pkg/cri/streaming/remotecommand"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// attach serves kubectl attach and kubectl run -it over SPDY or websocket.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	t, code, err := s.find(r)
	if err != nil {
		fail(w, code, err)
		return
	}
	if driver := s.driver(t.pod); driver != "docker" && driver != driverQemu {
		fail(w, http.StatusNotImplemented, fmt.Errorf("attach is not there for pods on driver %s", driver))
		return
	}
	// As the kubelet's GetAttach (pkg/kubelet/kubelet_pods.go), which finds what runs.
	if t.allocID == "" || t.status == nil || t.status.State.Running == nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("container %s not found in pod %s_%s", t.container, t.pod.Name, t.pod.Namespace))
		return
	}
	opts, err := crirc.NewOptions(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	// The terminal is the container's, whatever the client asks for
	// (pkg/kubelet/kubelet_pods.go, GetAttach); with one there is no second stream.
	if opts.TTY = t.terminal(); opts.TTY {
		opts.Stderr = false
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	crirc.ServeAttach(&hangupWriter{w, cancel}, r.WithContext(ctx), &attacher{s: s, t: t, stdin: opts.Stdin},
		t.pod.Name, t.pod.UID, t.container, opts, streamIdle, streamCreation, remotecommandconsts.SupportedStreamingProtocols)
}

// terminal says whether the container has one.
func (t *target) terminal() bool {
	for _, list := range [][]corev1.Container{t.pod.Spec.InitContainers, t.pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == t.container {
				return list[i].TTY
			}
		}
	}
	for i := range t.pod.Spec.EphemeralContainers {
		if c := &t.pod.Spec.EphemeralContainers[i]; c.Name == t.container {
			return c.TTY
		}
	}
	return false
}

// attacher joins a client to a container's own streams by the docker proxy, or,
// where the client has none, to what it writes from now on.
type attacher struct {
	s     *Server
	t     *target
	stdin bool
}

var _ crirc.Attacher = (*attacher)(nil)

// endTimeout bounds the call that tells of a client's end.
const endTimeout = 10 * time.Second

// notFound are the exit codes of a program that a container has not, which is
// what the docker proxy is where there is none.
func notFound(code int) bool { return code == 126 || code == 127 }

func (a *attacher) AttachContainer(ctx context.Context, _ string, _ types.UID, container string,
	in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if in == nil || !a.stdin {
		in = nothing{ctx}
	}
	if a.s.driver(a.t.pod) == driverQemu {
		return a.console(ctx, in, &streamWriter{w: out, cancel: cancel})
	}
	token := rand.Text()
	toOut, toErr := gather(&streamWriter{w: out, cancel: cancel}), gather(&streamWriter{w: errOut, cancel: cancel})
	code, err := a.s.o.Exec.Run(ctx, taskexec.Command{
		Namespace: a.s.o.Namespace, AllocID: a.t.allocID, Task: translate.TaskName(container), Driver: "docker", Handshake: true,
		Argv: []string{dockerproxy.CallProgram, dockerproxy.CallAttach, token},
		In:   in, Out: toOut, ErrOut: toErr, TTY: tty, Sizes: sizes(ctx, resize),
	})
	toOut.end(ctx)
	toErr.end(ctx)
	switch {
	case ctx.Err() != nil:
		go a.end(context.WithoutCancel(ctx), container, token)
		return errors.New("the client has left")
	case err != nil:
		return err
	case notFound(code) && a.stdin:
		return errors.New("the container's input is reached by the docker proxy only, which its Nomad client has not")
	case notFound(code):
		return a.follow(ctx, out)
	case code != 0:
		return fmt.Errorf("the docker proxy ended with %d", code)
	}
	return nil
}

// end tells the docker proxy that a client has left: the engine would hold up a
// container whose output nobody takes.
func (a *attacher) end(ctx context.Context, container, token string) {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if _, err := a.s.o.Exec.Run(ctx, taskexec.Command{
		Namespace: a.s.o.Namespace, AllocID: a.t.allocID, Task: translate.TaskName(container), Driver: "docker", Handshake: true,
		Argv: []string{dockerproxy.CallProgram, dockerproxy.CallEnd, token},
	}); err != nil {
		// The container has ended, or the proxy's own patience will.
		a.s.o.Log.Debug("the end of an attached client was not told", "pod", a.t.pod.UID, "error", err)
	}
}

// driverQemu is Nomad's for VMs.
const driverQemu = "qemu"

// console joins a client to the serial console of a VM. The terminal is the
// guest's own: bytes go both ways as they are. One that only looks on has the log.
func (a *attacher) console(ctx context.Context, in io.Reader, out io.Writer) error {
	if !a.stdin {
		return a.follow(ctx, out)
	}
	code, err := a.s.o.Exec.Run(ctx, taskexec.Command{
		Namespace: a.s.o.Namespace, AllocID: a.t.allocID, Task: translate.TaskName(a.t.container), Driver: driverQemu, In: in, Out: out, ErrOut: out,
	})
	switch {
	case ctx.Err() != nil:
		return errors.New("the client has left")
	case err == nil && code != 0:
		err = fmt.Errorf("the companion ended with %d", code)
	}
	return err
}

// follow hands on what the container writes from now on.
func (a *attacher) follow(ctx context.Context, out io.Writer) error {
	l := a.s.logReader(a.t)
	streams, err := l.streams(ctx)
	if err != nil {
		return err
	}
	if out == nil {
		out = io.Discard
	}
	return l.follow(ctx, streams, func() bool { return a.s.ended(a.t) }, out)
}

// nothing is an input that says nothing, and does not end before its time: the
// end would be taken for the container's input's.
type nothing struct{ ctx context.Context }

func (n nothing) Read([]byte) (int, error) {
	<-n.ctx.Done()
	return 0, io.EOF
}
