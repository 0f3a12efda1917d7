package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// What cannot be done is said as a kubelet says it, with its exit codes.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", idle, func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{container("init", "exit 0")}
		p.Spec.Containers = append(p.Spec.Containers, container("ended", "exit 0"))
	}))
	create(t, kube, ns, pod("pending", "", mock, func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationConstraints: "- {attribute: '${meta.nowhere}', operator: '=', value: 'x'}"}
	}))
	create(t, kube, ns, pod("over", "exit 0"))
	create(t, kube, ns, pod("nowhere", idle, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"example.com/none": "yes"} }))
	p = await(t, kube, p, 60*time.Second, "running, with one container ended", func(p *corev1.Pod) bool {
		return status(p, "c").State.Running != nil && status(p, "ended").State.Terminated != nil
	})
	kubectl(t, "-n", ns, "wait", "pod/over", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	eventually(t, 20*time.Second, "the pending pod is seen", func() error {
		out := kubectl(t, "-n", ns, "get", "pod", "pending", "-o", "jsonpath={.spec.nodeName}{.status.conditions[*].type}")
		if !strings.Contains(out, string(translate.ConditionPlaced)) {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		// pkg/registry/core/pod/strategy.go and pkg/kubelet/kubelet_pods.go (GetExec)
		{[]string{"exec", "p", "-c", "none", "--", "true"}, 1, `container none is not valid for pod p`},
		{[]string{"exec", "p", "-c", "ended", "--", "true"}, 1, `container not found ("ended")`},
		{[]string{"exec", "p", "-c", "init", "--", "true"}, 1, `container not found ("init")`},
		{[]string{"exec", "pending", "--", "true"}, 1, `container not found ("c")`},
		{[]string{"exec", "over", "--", "true"}, 1, "completed pod"},
		{[]string{"exec", "nowhere", "--", "true"}, 1, "does not have a host assigned"},
		// The shell's own codes for what is not there and what is no program.
		{[]string{"exec", "p", "-c", "c", "--", "/no/such", "program"}, 127, "/no/such: not found"},
		{[]string{"exec", "p", "-c", "c", "--", "nosuch"}, 127, "nosuch: not found"},
		{[]string{"exec", "p", "-c", "c", "--", "/etc"}, 126, "Permission denied"},
		{[]string{"attach", "p", "-c", "ended"}, 1, "container ended not found in pod p_" + ns},
		{[]string{"logs", "p", "-c", "none"}, 1, `container none is not valid for pod p`},
		{[]string{"logs", "nowhere"}, 0, ""},
		{[]string{"port-forward", "pending", ":80"}, 1, "pod is not running"},
	} {
		out, err := tryKubectl(t, "", append([]string{"-n", ns}, c.args...)...)
		if exitCode(err) != c.code || !strings.Contains(out, c.want) {
			t.Errorf("kubectl %s: exit code %d, %q; want %d, %q", strings.Join(c.args, " "), exitCode(err), out, c.code, c.want)
		}
	}
	// kubectl asks for a command itself.
	for name, ex := range executors(t, p, &corev1.PodExecOptions{Container: "c", Stdout: true}) {
		if err := ex.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil || name != "websocket" && !strings.Contains(err.Error(), "no command") {
			t.Errorf("%s: exec without a command: %v", name, err)
		}
	}
}

// A connection to a port on which nobody listens ends at once with the kubelet's
// words, and costs others nothing.
func TestPortForwardToNobody(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", `echo hello > /tmp/f; exec httpd -f -p 127.0.0.1:8080 -h /tmp`))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	awaitPage(t, p, 8080, "/f")
	ws, old := dialers(t, p)
	for name, dialer := range map[string]httpstream.Dialer{"websocket": ws, "spdy": old} {
		// client-go's own forwarder ends the session at the first error, which hides
		// whether it would have gone on.
		session, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		said, got := forwardOnce(t, session, 1, 9, "GET /f HTTP/1.0\r\n\r\n")
		if want := "error forwarding port 9 to pod p, uid "; !strings.HasPrefix(said, want) || !strings.Contains(said, "refused") || got != "" {
			t.Errorf("%s: %q, %q", name, said, got)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: it ended after %s", name, took)
		}
		if said, got := forwardOnce(t, session, 2, 8080, "GET /f HTTP/1.0\r\n\r\n"); said != "" || !strings.HasSuffix(got, "hello\n") {
			t.Errorf("%s: then the session reaches nobody: %q, %q", name, said, got)
		}
		_ = session.Close()
	}
}

// forwardOnce makes one connection of a session, sends that, and returns what the
// error stream and the connection say.
func forwardOnce(t *testing.T, session httpstream.Connection, id, port int, send string) (failure, answer string) {
	t.Helper()
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(id))
	errs, err := session.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	_ = errs.Close() // nothing is written to it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := session.CreateStream(headers)
	if err == nil {
		defer session.RemoveStreams(errs, data)
	}
	said := make(chan string, 1)
	go func() {
		text, err := io.ReadAll(errs)
		if err != nil && len(text) == 0 {
			text = []byte("the error stream ended with " + err.Error())
		}
		said <- string(text)
	}()
	var got []byte
	if err == nil { // its failure, which may come at any moment, is told by the other stream
		_, _ = io.WriteString(data, send)
		got, _ = io.ReadAll(data)
		_ = data.Close()
	}
	return <-said, string(got)
}

// A pod that puts a link into its volume does not get at its client by a sub-path.
func TestSubPathEscape(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", idle, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		mount := func(name, path, sub string, command ...string) corev1.Container {
			c := *p.Spec.Containers[0].DeepCopy()
			c.Name, c.Command = name, command
			c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: path, SubPath: sub}}
			return c
		}
		p.Spec.InitContainers = []corev1.Container{mount("link", "/vol", "", "ln", "-s", "/", "/vol/host")}
		p.Spec.Containers = append(p.Spec.Containers, mount("escape", "/host", "host/etc", "sh", "-c", idle))
	}))
	eventually(t, 90*time.Second, "the way out is told", func() error {
		events, err := kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			if strings.Contains(e.Message, "out of its volume by a symbolic link") {
				return nil
			}
			all = append(all, e.Message)
		}
		return fmt.Errorf("%q", all)
	})
	now, err := kube.CoreV1().Pods(ns).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range now.Status.ContainerStatuses {
		if c.Name == "escape" && (c.State.Running != nil || c.LastTerminationState.Terminated != nil && c.LastTerminationState.Terminated.ExitCode == 0) {
			t.Errorf("a container whose sub-path leads out of its volume has run: %+v", c)
		}
	}
}
