package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// imageOf makes an image that runs as a user, with the shared hybrid's engine.
func imageOf(t *testing.T, name, user string) string {
	t.Helper()
	file := fmt.Sprintf("FROM %s\nUSER %s\n", image, user)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(file))}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, file) // into memory
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	engine := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(cluster.DockerHost(), "unix://"))
	}}}
	resp, err := engine.Post("http://docker/build?t="+url.QueryEscape(name), "application/x-tar", &buf)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if out, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(out, []byte("errorDetail")) {
		t.Fatalf("make image %s: %s %v\n%s", name, resp.Status, err, out)
	}
	return name
}

// The user of an image counts where the pod names none: runAsNonRoot is kept as
// on the kubelet, and a group goes with the image's user.
func TestUserOfTheImage(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	number, name := imageOf(t, "nke2e/user:number", "1234"), imageOf(t, "nke2e/user:name", "nobody")
	nonRoot := func(image string) option {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true)}
			p.Spec.Containers[0].Image = image
		}
	}
	for image, want := range map[string]string{"root": "container has runAsNonRoot and image will run as root", "name": "container has runAsNonRoot and image has non-numeric user (nobody)"} {
		of := map[string]string{"root": "busybox:1.36", "name": name}[image]
		p := create(t, kube, ns, pod(image, "sleep 600", nonRoot(of), restart(corev1.RestartPolicyAlways)))
		p = await(t, kube, p, 60*time.Second, "waiting for a better image", func(p *corev1.Pod) bool {
			w := status(p, "c").State.Waiting
			return w != nil && w.Reason == "CreateContainerConfigError"
		})
		msg := status(p, "c").State.Waiting.Message
		if who := fmt.Sprintf("(pod: \"%s_%s(%s)\", container: c)", p.Name, ns, p.UID); !strings.HasPrefix(msg, want) || !strings.Contains(msg, who) {
			t.Errorf("message %q", msg)
		}
	}
	p := create(t, kube, ns, pod("other", "id -u; id -g", nonRoot(number), func(p *corev1.Pod) {
		p.Spec.SecurityContext.RunAsGroup = new(int64(3000))
	}))
	await(t, kube, p, 60*time.Second, "succeeded", phase(corev1.PodSucceeded))
	if got := logs(t, kube, p, &corev1.PodLogOptions{}); got != "1234\n3000\n" {
		t.Errorf("it ran as %q", got)
	}
}
