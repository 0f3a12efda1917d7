package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
)

// executors are client-go's ways to run a command: the old, the new, and the new
// with the old for servers that have it not, which is kubectl's.
func executors(t *testing.T, p *corev1.Pod, o *corev1.PodExecOptions) map[string]remotecommand.Executor {
	t.Helper()
	url := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").
		VersionedParams(o, scheme.ParameterCodec).URL()
	old, err := remotecommand.NewSPDYExecutor(restCfg, "POST", url)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := remotecommand.NewWebSocketExecutor(restCfg, "GET", url.String())
	if err != nil {
		t.Fatal(err)
	}
	both, err := remotecommand.NewFallbackExecutor(ws, old, httpstream.IsUpgradeFailure)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"spdy": old, "websocket": ws, "fallback": both}
}

// client-go's remotecommand carries input, both outputs, the exit code and the
// terminal's size, by each of its protocols.
func TestRemoteCommand(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	const lines = 20_000
	in := strings.Repeat("0123456789abcdef\n", lines)
	script := `n=$(wc -l); seq ` + strconv.Itoa(lines) + `; echo "read $n" >&2; exit 41`
	for name, ex := range executors(t, p, &corev1.PodExecOptions{Container: "c", Command: []string{"sh", "-c", script}, Stdin: true, Stdout: true, Stderr: true}) {
		var out, errOut bytes.Buffer
		begin := time.Now()
		err := ex.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out, Stderr: &errOut})
		var exit interface{ ExitStatus() int }
		if !errors.As(err, &exit) || exit.ExitStatus() != 41 {
			t.Errorf("%s: ended with %v", name, err)
		}
		t.Logf("%s: %d kB in and %d kB out in %s", name, len(in)/1000, out.Len()/1000, time.Since(begin).Round(time.Millisecond))
		if got := strings.Count(out.String(), "\n"); got != lines || !strings.HasSuffix(out.String(), "\n"+strconv.Itoa(lines)+"\n") || errOut.String() != fmt.Sprintf("read %d\n", lines) {
			t.Errorf("%s: %d lines of %d, %q", name, got, lines, errOut.String())
		}
	}
	for name, ex := range executors(t, p, &corev1.PodExecOptions{
		Container: "c", Command: []string{"sh", "-c", `until [ "$(stty size 2>/dev/null)" = "40 120" ]; do sleep 0.1; done; echo sized; tty`}, Stdin: true, Stdout: true, TTY: true,
	}) {
		var out bytes.Buffer
		size := make(sizeOnce, 1)
		size <- remotecommand.TerminalSize{Width: 120, Height: 40}
		keyboard, typed := io.Pipe()
		begin := time.Now()
		err := ex.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: &out, Tty: true, TerminalSizeQueue: size})
		close(size)
		_ = typed.Close()
		// Its input is open when the command ends, which must not be waited for.
		took := time.Since(begin).Round(time.Millisecond)
		if t.Logf("%s: a terminal in %s", name, took); took > 8*time.Second {
			t.Errorf("%s: the command in the terminal ended after %s", name, took)
		}
		if err != nil || !strings.HasPrefix(out.String(), "sized\r\n/dev/") {
			t.Errorf("%s: the terminal showed %q, %v", name, out.String(), err)
		}
	}
}

// client-go's portforward works by websocket, too, as kubectl asks for it, and many
// connections after one another are one session.
func TestPortForwardByWebsocket(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("web", `mkdir /www && echo hello > /www/f && exec httpd -f -p 127.0.0.1:8080 -h /www`))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	awaitPage(t, p, 8080, "/f")
	ws, old := dialers(t, p)
	for name, dialer := range map[string]httpstream.Dialer{"websocket": ws, "fallback": portforward.NewFallbackDialer(ws, old, httpstream.IsUpgradeFailure)} {
		base := forwardBy(t, dialer, 8080)
		for range 20 {
			resp, err := http.Get(base + "/f")
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || string(body) != "hello\n" {
				t.Fatalf("%s: %q, %v", name, body, err)
			}
		}
	}
}

// A watch of a node's pods, from the version of a list, as k9s and agents on nodes
// keep it, is told of every phase in order.
func TestWatchByNode(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	onNode := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", "nomad").String()}
	list, err := kube.CoreV1().Pods("").List(t.Context(), onNode)
	if err != nil {
		t.Fatal(err)
	}
	onNode.ResourceVersion, onNode.AllowWatchBookmarks = list.ResourceVersion, true
	w, err := kube.CoreV1().Pods("").Watch(t.Context(), onNode)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	p := create(t, kube, ns, pod("p", "sleep 3; exit 0"))
	var seen []string
	version := uint64(0)
	limit := time.After(60 * time.Second)
	for deleted := false; !deleted; {
		select {
		case e, ok := <-w.ResultChan():
			got, isPod := e.Object.(*corev1.Pod)
			if !ok || !isPod {
				t.Fatalf("the watch ended: %v", e)
			}
			v, err := strconv.ParseUint(got.ResourceVersion, 10, 64)
			if err != nil || v < version {
				t.Errorf("%s of %s is of version %s, after %d", e.Type, got.Name, got.ResourceVersion, version)
			}
			version = v
			if got.UID != p.UID {
				continue
			}
			what := string(e.Type) + " " + string(got.Status.Phase)
			if !slices.Contains(seen, what) {
				seen = append(seen, what)
			}
			if got.Status.Phase == corev1.PodSucceeded && got.DeletionTimestamp == nil {
				remove(t, kube, p, nil)
			}
			deleted = e.Type == watch.Deleted
		case <-limit:
			t.Fatalf("seen: %v", seen)
		}
	}
	// Whether anything else happens to it while it is pending is no matter.
	seen = slices.DeleteFunc(seen, func(s string) bool { return s == "MODIFIED Pending" })
	if !slices.Equal(seen, []string{"ADDED Pending", "MODIFIED Running", "MODIFIED Succeeded", "DELETED Succeeded"}) {
		t.Errorf("seen: %v", seen)
	}
}

// kubectl wait sees what it waits for, and for how long not.
func TestKubectlWait(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("p", idle, restart(corev1.RestartPolicyAlways)))
	never := startKubectl(t, nil, "-n", ns, "wait", "pod/p", "--for=jsonpath={.status.phase}=Failed", "--timeout=5s")
	kubectl(t, "-n", ns, "wait", "pod/p", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
	kubectl(t, "-n", ns, "wait", "pod/p", "--for=condition=Ready", "--timeout=60s")
	kubectl(t, "-n", ns, "wait", "pod/p", "--for=jsonpath={.status.containerStatuses[0].state.running.startedAt}", "--timeout=10s")
	gone := startKubectl(t, nil, "-n", ns, "wait", "pod/p", "--for=delete", "--timeout=60s")
	if err := never.ends(t, 20*time.Second); err == nil {
		t.Error("kubectl wait is satisfied with a pod that has not failed")
	}
	select {
	case err := <-gone.done:
		t.Fatalf("kubectl wait --for=delete ended while the pod was there: %v", err)
	default:
	}
	remove(t, kube, p, nil)
	if err := gone.ends(t, 60*time.Second); err != nil {
		t.Errorf("wait --for=delete: %v", err)
	}
	if _, err := kube.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it ended while the pod was there: %v", err)
	}
}

// kubectl run -it --rm in a terminal is a shell in a new pod, of the terminal's
// size, and leaves nothing.
func TestKubectlRunInTerminal(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	overrides := `{"spec":{"nodeSelector":{"type":"virtual-kubelet"},"tolerations":[{"key":"nomad-kubelet.io/provider","operator":"Exists"}]}}`
	term := openTerminal(t, "run", "-n", ns, "-it", "--rm", "--restart=Never", "--image="+image, "--overrides="+overrides, "shell", "--", "sh")
	// What the shell shows before kubectl is attached is lost, hence kubectl's advice.
	term.shows(t, "try pressing enter", 60*time.Second)
	term.types(t, "\r")
	term.shows(t, "/ # ", 60*time.Second)
	term.types(t, "echo $((6*7)) in $(hostname)\r")
	term.shows(t, "42 in shell", 20*time.Second)
	eventually(t, 20*time.Second, "the terminal's size", func() error {
		term.types(t, "stty size\r")
		pause(t, 300*time.Millisecond)
		term.mu.Lock()
		defer term.mu.Unlock()
		if !strings.Contains(term.shown.String(), "40 120") {
			return fmt.Errorf("it shows %q", term.shown.String())
		}
		return nil
	})
	term.types(t, "exit 3\r")
	select {
	case err := <-term.done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(60 * time.Second):
		t.Fatalf("kubectl run has not ended: %q", term.shown.String())
	}
	term.shows(t, `pod "shell" deleted`, 10*time.Second)
	eventually(t, 30*time.Second, "the pod is gone", func() error {
		if _, err := kube.CoreV1().Pods(ns).Get(t.Context(), "shell", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %v", err)
		}
		return nil
	})
}

// kubectl debug joins a container to a pod's process, and its user to it.
func TestKubectlDebug(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	await(t, kube, create(t, kube, ns, pod("p", "exec sleep 76543", restart(corev1.RestartPolicyAlways))), 60*time.Second, "ready", ready)
	in, typed := io.Pipe()
	defer typed.Close()
	b := startKubectl(t, in, "debug", "-n", ns, "p", "-i", "--image="+image, "--target=c", "-c", "dbg", "--",
		"sh", "-c", `read -r line; echo "got $line"; ps | grep -c "[s]leep 76543"; exit 0`)
	// It is attached when the container runs, which is when it is heard.
	go func() { _, _ = io.WriteString(typed, "marco\n") }()
	b.says(t, "got marco\n1\n", 60*time.Second)
	_ = typed.Close()
	if err := b.ends(t, 30*time.Second); err != nil {
		t.Errorf("kubectl debug: %v", err)
	}
}

// kubectl cp carries a directory in and out again, as it is.
func TestKubectlCopy(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	from, to := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "back")
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	files := map[string]struct {
		data []byte
		mode fs.FileMode
	}{
		"big": {big, 0o600}, "empty": {nil, 0o644}, "deep/er/still/run.sh": {[]byte("#!/bin/sh\necho ran\n"), 0o755}, "with space/ü": {[]byte("x"), 0o640},
	}
	for name, f := range files {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "cp", from, ns+"/p:/tmp/tree", "-c", "c")
	if out := kubectl(t, "-n", ns, "exec", "p", "--", "/tmp/tree/deep/er/still/run.sh"); out != "ran\n" {
		t.Errorf("the script says %q", out)
	}
	if out := kubectl(t, "-n", ns, "exec", "p", "--", "stat", "-c", "%a", "/tmp/tree/big", "/tmp/tree/with space/ü"); out != "600\n640\n" {
		t.Errorf("the modes are %q", out)
	}
	kubectl(t, "cp", ns+"/p:/tmp/tree", to, "-c", "c")
	n := 0
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		name, _ := filepath.Rel(to, path)
		want, known := files[name]
		got, err := os.ReadFile(path)
		if err != nil || !known || !bytes.Equal(got, want.data) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want.data), err)
		}
		return nil
	})
	if err != nil || n != len(files) {
		t.Errorf("%d files of %d came back, %v", n, len(files), err)
	}
}

// The kubelet API is reached through the API server's node proxy, by which agents
// and people ask a kubelet, and is closed to others.
func TestNodeProxy(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	for _, path := range []string{"/pods", "/runningpods/"} {
		out := kubectl(t, "get", "--raw", "/api/v1/nodes/nomad/proxy"+path)
		if !strings.Contains(out, string(p.UID)) || !strings.Contains(out, `"kind":"PodList"`) {
			t.Errorf("%s: %.300s", path, out)
		}
	}
	if out := kubectl(t, "get", "--raw", "/api/v1/nodes/nomad/proxy/healthz"); out != "ok" {
		t.Errorf("/healthz: %q", out)
	}
	if out, err := tryKubectl(t, "", "get", "--raw", "/api/v1/nodes/nomad/proxy/configz"); err == nil {
		t.Errorf("/configz: %q", out)
	}
	if out := kubectl(t, "get", "--raw", "/api/v1/nodes/"+secondNode+"/proxy/pods"); strings.Contains(out, string(p.UID)) {
		t.Errorf("the other node has the pod, too: %.300s", out)
	}
	// It is closed to whoever comes without the API server's word.
	anybody := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}
	resp, err := anybody.Get("https://" + cluster.KubeletAddress() + "/pods")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("/pods answers %s to anybody", resp.Status)
	}
}
