package kubelet

import (
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// forwardSession is a session of a server whose pods are in a network or not, and
// whose Nomad does not answer.
func forwardSession(t *testing.T, ip string, network bool) httpstream.Connection {
	t.Helper()
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	pod := testPod()
	pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, ip
	base := serve(t, nomad, &pods{pod: pod, alloc: "a1"}, func(o *Options) { o.PodNetwork = network })
	u, err := url.Parse(base + "/portForward/default/p")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{BearerToken: "good", TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	session, _, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u).Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

// forwarded makes one connection, on which it sends, and returns what comes and
// what the session says of a failure.
func forwarded(t *testing.T, session httpstream.Connection, id, port int, send string) (answer, failure string) {
	t.Helper()
	h := http.Header{}
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	h.Set(corev1.PortHeader, fmt.Sprint(port))
	h.Set(corev1.PortForwardRequestIDHeader, fmt.Sprint(id))
	failed, err := session.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	_ = failed.Close() // nothing is written to it
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	// A connection that fails is reset, at any moment.
	var got []byte
	data, err := session.CreateStream(h)
	if err == nil {
		_, _ = io.WriteString(data, send) // it would not come back
		_ = data.Close()                  // that is the end of what is sent
		got, err = io.ReadAll(data)
	}
	said, errSaid := io.ReadAll(failed)
	if errSaid != nil || err != nil && len(said) == 0 {
		t.Fatal(err, errSaid)
	}
	return string(got), string(said)
}

// echo answers with what it got when that has ended.
func echo(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				all, _ := io.ReadAll(conn)
				_, _ = conn.Write(all)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// In a network where a pod's address is its own it is dialled, without Nomad; every
// byte comes, half-closed connections, too.
func TestPortForwardDirect(t *testing.T) {
	port := echo(t)
	session := forwardSession(t, "127.0.0.1", true)
	for id, text := range []string{"hello", rand.Text(), strings.Repeat(rand.Text(), 100_000)} {
		if got, failure := forwarded(t, session, id, port, text); got != text || failure != "" {
			t.Errorf("%d bytes of %d, %q", len(got), len(text), failure)
		}
	}
	// What listens on loopback only is looked for by Nomad.
	if got, failure := forwarded(t, session, 9, 1, "x"); got != "" || !strings.Contains(failure, errNoWay.Error()) {
		t.Errorf("%q, %q", got, failure)
	}
}

// Elsewhere it may be another one's on this machine.
func TestPortForwardOnlyInANetwork(t *testing.T) {
	session := forwardSession(t, "127.0.0.1", false)
	if got, failure := forwarded(t, session, 1, echo(t), "x"); got != "" || !strings.Contains(failure, errNoWay.Error()) {
		t.Errorf("%q, %q", got, failure)
	}
}

// A network that is not reached from here is waited for once, not by each
// connection.
func TestPortForwardWithoutNetwork(t *testing.T) {
	session := forwardSession(t, "192.0.2.1", true) // of RFC 5737: nobody's
	begin := time.Now()
	for id := range 5 {
		if got, failure := forwarded(t, session, id, 80, "x"); got != "" || !strings.Contains(failure, errNoWay.Error()) {
			t.Errorf("%q, %q", got, failure)
		}
	}
	if took := time.Since(begin); took > 3*directPatience {
		t.Errorf("five connections took %s", took)
	}
}
