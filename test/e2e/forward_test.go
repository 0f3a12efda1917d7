package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// dialers are the ways in which clients ask for a port-forward: by websocket, and
// the old one.
func dialers(t *testing.T, p *corev1.Pod) (ws, old httpstream.Dialer) {
	t.Helper()
	url := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward").URL()
	ws, err := portforward.NewSPDYOverWebsocketDialer(url, restCfg)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(restCfg)
	if err != nil {
		t.Fatal(err)
	}
	return ws, spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", url)
}

// awaitPage waits until the pod's server answers.
func awaitPage(t *testing.T, p *corev1.Pod, port int, path string) {
	t.Helper()
	eventually(t, 20*time.Second, "the server answers", func() error {
		if _, msg, code := execIn(t, p, "c", nil, "wget", "-q", "-O", "/dev/null", fmt.Sprintf("http://127.0.0.1:%d%s", port, path)); code != 0 {
			return errors.New(msg)
		}
		return nil
	})
}

// forwardBy opens a port of this machine for one of the pod's until the test ends,
// by client-go's portforward.
func forwardBy(t *testing.T, dialer httpstream.Dialer, port int) (url string) {
	t.Helper()
	over, stop, is := make(chan error, 1), make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, is, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { over <- f.ForwardPorts() }()
	select {
	case <-is:
	case err := <-over:
		t.Fatal("port-forward:", err)
	}
	t.Cleanup(func() {
		close(stop)
		<-over
	})
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local)
}

// forwardTo is the same in the old way.
func forwardTo(t *testing.T, p *corev1.Pod, port int) (url string) {
	t.Helper()
	_, old := dialers(t, p)
	return forwardBy(t, old, port)
}
