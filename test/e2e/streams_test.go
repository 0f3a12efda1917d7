package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// attachTo joins a container's streams, over SPDY or websocket, until they end.
func attachTo(t *testing.T, p *corev1.Pod, websocket bool, o corev1.PodAttachOptions, s remotecommand.StreamOptions) error {
	t.Helper()
	url := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("attach").
		VersionedParams(&o, scheme.ParameterCodec).URL()
	var ex remotecommand.Executor
	var err error
	if websocket {
		ex, err = remotecommand.NewWebSocketExecutor(restCfg, "GET", url.String())
	} else {
		ex, err = remotecommand.NewSPDYExecutor(restCfg, "POST", url)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	return ex.StreamWithContext(ctx, s)
}

// What is typed reaches the container's own process, what it writes comes back,
// and with stdinOnce its input ends with the client's.
func TestAttach(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	for name, websocket := range map[string]bool{"spdy": false, "websocket": true} {
		p := create(t, kube, ns, pod(name, `read -r line; echo "got $line"; echo oops >&2; cat; echo end`, func(p *corev1.Pod) {
			p.Spec.Containers[0].Stdin, p.Spec.Containers[0].StdinOnce = true, true
		}))
		p = await(t, kube, p, 60*time.Second, "ready", ready)
		var out, errOut bytes.Buffer
		err := attachTo(t, p, websocket, corev1.PodAttachOptions{Container: "c", Stdin: true, Stdout: true, Stderr: true},
			remotecommand.StreamOptions{Stdin: strings.NewReader("a line\nthe rest\n"), Stdout: &out, Stderr: &errOut})
		if err != nil || out.String() != "got a line\nthe rest\nend\n" || errOut.String() != "oops\n" {
			t.Errorf("%s: %q, %q, %v", name, out.String(), errOut.String(), err)
		}
		await(t, kube, p, 30*time.Second, "succeeded", phase(corev1.PodSucceeded))
	}
}

// sizeOnce is a terminal whose size does not change.
type sizeOnce chan remotecommand.TerminalSize

func (s sizeOnce) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestAttachToTerminal(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("tty", `while read -r line; do test "$line" = bye && exit 0; stty size; done`, func(p *corev1.Pod) {
		p.Spec.Containers[0].Stdin, p.Spec.Containers[0].TTY = true, true
	}))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	size := make(sizeOnce, 1)
	size <- remotecommand.TerminalSize{Width: 120, Height: 40}
	defer close(size)
	in, typed := io.Pipe()
	seen := &firstSeen{want: "40 120", then: func() { _, _ = io.WriteString(typed, "bye\n") }}
	go func() {
		// The size comes by a way of its own: it is asked for until it is there.
		for seen.waiting() && t.Context().Err() == nil {
			_, _ = io.WriteString(typed, "\n")
			pause(t, 300*time.Millisecond)
		}
	}()
	err := attachTo(t, p, false, corev1.PodAttachOptions{Container: "c", Stdin: true, Stdout: true, TTY: true},
		remotecommand.StreamOptions{Stdin: in, Stdout: seen, Tty: true, TerminalSizeQueue: size})
	if err != nil || seen.waiting() {
		t.Errorf("%v; the terminal showed %q", err, seen.buf.String())
	}
	await(t, kube, p, 30*time.Second, "succeeded", phase(corev1.PodSucceeded))
}

// firstSeen is an output in which something is waited for.
type firstSeen struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want string
	then func()
	once sync.Once
}

func (f *firstSeen) Write(p []byte) (int, error) {
	f.mu.Lock()
	f.buf.Write(p)
	found := strings.Contains(f.buf.String(), f.want)
	f.mu.Unlock()
	if found {
		f.once.Do(func() { go f.then() })
	}
	return len(p), nil
}

func (f *firstSeen) waiting() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !strings.Contains(f.buf.String(), f.want)
}

// kubectl run makes a pod, is attached to it, and ends with its exit code.
func TestKubectlRun(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	overrides := `{"spec":{"nodeSelector":{"type":"virtual-kubelet"},"tolerations":[{"key":"nomad-kubelet.io/provider","operator":"Exists"}]}}`
	out, err := tryKubectl(t, "hello\n", "run", "-n", ns, "-i", "--rm", "--restart=Never", "--image="+image, "--overrides="+overrides, "--quiet", "echo",
		"--", "sh", "-c", "cat; exit 4")
	var exit *exec.ExitError
	if !strings.Contains(out, "hello") || !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Errorf("%q %v", out, err)
	}
}

// Connections reach what listens on the pod's loopback only, many at a time, and
// carry every byte.
func TestPortForward(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("web", `mkdir /www && head -c 20000000 /dev/urandom > /www/f && cd /www && httpd -f -p 127.0.0.1:8080`, restart(corev1.RestartPolicyAlways)))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	var want string
	eventually(t, 20*time.Second, "the file", func() error {
		out, _, _ := execIn(t, p, "c", nil, "sh", "-c", "pidof httpd && sha256sum /www/f")
		fields := strings.Fields(out)
		if len(fields) != 3 {
			return fmt.Errorf("%q", out)
		}
		want = fields[1]
		return nil
	})
	url := forwardTo(t, p, 8080)
	errs := make(chan error)
	const n = 8
	for range n {
		go func() {
			resp, err := http.Get(url + "/f")
			if err != nil {
				errs <- err
				return
			}
			defer resp.Body.Close()
			sum := sha256.New()
			size, err := io.Copy(sum, resp.Body)
			if got := hex.EncodeToString(sum.Sum(nil)); err == nil && got != want {
				err = fmt.Errorf("%d bytes with the sum %s, want %s", size, got, want)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	resp, err := http.Get(forwardTo(t, p, 8081))
	if err == nil {
		resp.Body.Close()
		t.Error("a port answers on which nothing listens")
	}
}
