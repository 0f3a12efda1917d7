package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/remotecommand"
	watchtools "k8s.io/client-go/tools/watch"
)

const image = "busybox:1.36"

// namespace makes a namespace for one test and removes it at its end.
func namespace(t *testing.T, k kubernetes.Interface) string {
	t.Helper()
	ns, err := k.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Pods wait for their namespace's account.
	err = wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 20*time.Second, true, func(ctx context.Context) (bool, error) {
		_, err := k.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	})
	if err != nil {
		t.Fatal("the namespace got no default service account:", err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		zero := int64(0)
		_ = k.CoreV1().Pods(ns.Name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{})
		_ = k.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{})
	})
	return ns.Name
}

type option func(*corev1.Pod)

// pod is a pod for a virtual node with one container, c, running script.
func pod(name, script string, opts ...option) *corev1.Pod {
	grace, mount := int64(2), false
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"type": "virtual-kubelet"},
			Tolerations:                   []corev1.Toleration{{Key: "nomad-kubelet.io/provider", Operator: corev1.TolerationOpExists}},
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &mount,
			RestartPolicy:                 corev1.RestartPolicyNever,
			Containers:                    []corev1.Container{container("c", script)},
		},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func container(name, script string) corev1.Container {
	return corev1.Container{Name: name, Image: image, Command: []string{"sh", "-c", script}}
}

func restart(policy corev1.RestartPolicy) option {
	return func(p *corev1.Pod) { p.Spec.RestartPolicy = policy }
}

// mock makes Nomad only pretend to run the pod.
func mock(p *corev1.Pod) {
	class := "nomad-mock"
	p.Spec.RuntimeClassName = &class
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Command = nil
	}
}

func create(t *testing.T, k kubernetes.Interface, ns string, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, err := k.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// await watches the pod until check is satisfied, and fails the test with the
// pod's last state when that takes longer than limit.
func await(t *testing.T, k kubernetes.Interface, p *corev1.Pod, limit time.Duration, what string, check func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	only := func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", p.Name).String()
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			only(&o)
			return k.CoreV1().Pods(p.Namespace).List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			only(&o)
			return k.CoreV1().Pods(p.Namespace).Watch(ctx, o)
		},
	}
	last := p
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{}, nil, func(e watch.Event) (bool, error) {
		x, ok := e.Object.(*corev1.Pod)
		if !ok || x.UID != p.UID {
			return false, nil
		}
		if e.Type == watch.Deleted {
			return false, errors.New("the pod was deleted")
		}
		last = x
		return check(x), nil
	})
	if err != nil {
		t.Fatalf("pod %s/%s: not %s within %s: %v\n%s", p.Namespace, p.Name, what, limit, err, describe(last))
	}
	return last
}

func describe(p *corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s, reason %s: %s\n", p.Status.Phase, p.Status.Reason, p.Status.Message)
	for _, c := range p.Status.Conditions {
		fmt.Fprintf(&b, "  condition %s=%s %s %s\n", c.Type, c.Status, c.Reason, c.Message)
	}
	for _, s := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		fmt.Fprintf(&b, "  container %s: restarts %d state %s last %s\n", s.Name, s.RestartCount, s.State.String(), s.LastTerminationState.String())
	}
	return b.String()
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func phase(want corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p.Status.Phase == want }
}

func status(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// eventually polls what cannot be watched.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, limit, true, func(context.Context) (bool, error) {
		last = check()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%s: not within %s: %v", what, limit, last)
	}
}

func remove(t *testing.T, k kubernetes.Interface, p *corev1.Pod, grace *int64) {
	t.Helper()
	err := k.CoreV1().Pods(p.Namespace).Delete(t.Context(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: grace})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func awaitGone(t *testing.T, k kubernetes.Interface, p *corev1.Pod, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "the pod is gone", func() error {
		got, err := k.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && got.UID != p.UID {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
}

// awaitNoJob waits until Nomad has forgotten the pod's job and its Variables.
func awaitNoJob(t *testing.T, n *api.Client, id string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "Nomad forgot the job", func() error {
		if j, _, err := n.Jobs().Info(id, nil); err == nil {
			return fmt.Errorf("job %s is %s", id, *j.Status)
		}
		vars, _, err := n.Variables().PrefixList("nomad/jobs/"+id, nil)
		if err != nil || len(vars) > 0 {
			return fmt.Errorf("%d Variables left: %v", len(vars), err)
		}
		return nil
	})
}

func logs(t *testing.T, k kubernetes.Interface, p *corev1.Pod, opts *corev1.PodLogOptions) string {
	t.Helper()
	data, err := k.CoreV1().Pods(p.Namespace).GetLogs(p.Name, opts).DoRaw(t.Context())
	if err != nil {
		t.Fatalf("logs of %s: %v", p.Name, err)
	}
	return string(data)
}

// execIn runs a command in a container and returns its output and exit code.
func execIn(t *testing.T, p *corev1.Pod, ctr string, stdin io.Reader, command ...string) (stdout, stderr string, code int) {
	t.Helper()
	req := kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: ctr, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	ex, err := remotecommand.NewSPDYExecutor(restCfg, "POST", req.URL())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	var exit interface{ ExitStatus() int }
	switch {
	case errors.As(err, &exit):
		code = exit.ExitStatus()
	case err != nil:
		t.Fatalf("exec %v in %s: %v", command, p.Name, err)
	}
	return out.String(), errOut.String(), code
}

// eventOf waits for an event of the pod with that reason.
func eventOf(t *testing.T, k kubernetes.Interface, p *corev1.Pod, reason string) string {
	t.Helper()
	var msg string
	eventually(t, 20*time.Second, "event "+reason, func() error {
		list, err := k.CoreV1().Events(p.Namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Reason == reason {
				msg = e.Message
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("events: %s", strings.Join(seen, "; "))
	})
	return msg
}

// deep renders everything below pointers.
func deep(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// touch changes an annotation, so that the pod is looked at again.
func touch(t *testing.T, p *corev1.Pod) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"touched":%q}}}`, time.Now().String())
	if _, err := kube.CoreV1().Pods(p.Namespace).Patch(t.Context(), p.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// program runs nomad-kubelet without the environment of a user.
func program(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(), "nomad-kubelet"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
