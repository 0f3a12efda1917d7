package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// namespace makes a Kubernetes namespace that ends with the benchmark.
func (h *hybrid) namespace(b *testing.B) string {
	b.Helper()
	ns, err := h.kube.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-"}}, metav1.CreateOptions{})
	must(b, err)
	must(b, poll(b.Context(), 20*time.Second, func(ctx context.Context) error {
		_, err := h.kube.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		return err
	}))
	b.Cleanup(func() {
		if err := h.kube.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{}); err != nil {
			b.Error(err)
		}
	})
	return ns.Name
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func poll(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, limit, true, func(ctx context.Context) (bool, error) {
		last = f(ctx)
		return last == nil, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("%w after %s: %w", err, limit, last)
	}
	return err
}

// pod is a pod of one container for the virtual node.
func pod(name string) *corev1.Pod {
	grace, mount := int64(1), false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"type": "virtual-kubelet"},
			Tolerations:                   []corev1.Toleration{{Key: "nomad-kubelet.io/provider", Operator: corev1.TolerationOpExists}},
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &mount,
			Containers: []corev1.Container{{
				Name: "c", Image: image, Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 36000 & wait"},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("10Mi")}},
			}},
		},
	}
}

// mockPod is one that Nomad only pretends to run.
func mockPod(name string) *corev1.Pod {
	p := pod(name)
	class := mockClass
	p.Spec.RuntimeClassName = &class
	p.Spec.Containers[0].Command = nil
	return p
}

// plainPod carries the same load on the API server and is never bound.
func plainPod(name string) *corev1.Pod {
	p := mockPod(name)
	p.Spec.SchedulerName = "nobody"
	return p
}

// parallel runs f for 0..n-1, atOnce at a time, and returns the errors.
func parallel(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, n)
	tickets := make(chan int)
	for range min(n, *atOnce) {
		wg.Go(func() {
			for i := range tickets {
				errs[i] = f(i)
			}
		})
	}
	for i := range n {
		tickets <- i
	}
	close(tickets)
	wg.Wait()
	return errors.Join(errs...)
}

func podName(i int) string { return fmt.Sprintf("p%04d", i) }

// create creates n pods, *atOnce at a time.
func (h *hybrid) create(ctx context.Context, ns string, n int, build func(name string) *corev1.Pod) ([]*corev1.Pod, error) {
	out := make([]*corev1.Pod, n)
	err := parallel(n, func(i int) (err error) {
		out[i], err = h.kube.CoreV1().Pods(ns).Create(ctx, build(podName(i)), metav1.CreateOptions{})
		return err
	})
	return out, err
}

// directJob is the job that nomad-kubelet would register for a pod like p, under
// another ID and in the namespace of direct jobs.
func (h *hybrid) directJob(p *corev1.Pod, services []corev1.Service) (*api.Job, error) {
	like := p.DeepCopy()
	like.UID = uuid.NewUUID()
	in := translate.Inputs{Cluster: directCluster, Node: h.profile, Services: services}
	in.Node.Namespace = directNamespace
	result, err := translate.Job(like, in)
	if err != nil {
		return nil, err
	}
	if len(result.Items) > 0 {
		return nil, fmt.Errorf("pod %s projects something, which a direct job cannot", p.Name)
	}
	return result.Job, nil
}

// services are those whose variables every pod sees.
func (h *hybrid) services(ctx context.Context) ([]corev1.Service, error) {
	s, err := h.kube.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return []corev1.Service{*s}, nil
}

func (h *hybrid) register(ctx context.Context, job *api.Job) error {
	_, _, err := h.nomad.Jobs().RegisterOpts(job, &api.RegisterOptions{EnforceIndex: true},
		(&api.WriteOptions{Namespace: directNamespace}).WithContext(ctx))
	return err
}

// sameShape makes sure that like is compared with like: the job Nomad got for
// a pod, and the direct one, differ in nothing but their identity.
func (h *hybrid) sameShape(podJob, directJob string) error {
	shape := func(id, namespace string) (string, error) {
		j, _, err := h.nomad.Jobs().Info(id, &api.QueryOptions{Namespace: namespace})
		if err != nil {
			return "", err
		}
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetIndent("", " ")
		err = enc.Encode([]any{j.Type, j.Priority, j.NodePool, j.Datacenters, j.TaskGroups})
		text := strings.ReplaceAll(buf.String(), id, "ID")
		return strings.ReplaceAll(text, id[len(id)-36:], "UID"), err
	}
	a, err := shape(podJob, h.profile.Namespace)
	if err != nil {
		return err
	}
	b, err := shape(directJob, directNamespace)
	if err != nil {
		return err
	}
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if i >= len(y) || x[i] != y[i] {
			return fmt.Errorf("jobs %s and %s differ: %s", podJob, directJob, x[i])
		}
	}
	return nil
}

// removePods deletes all pods of the namespace and waits until Nomad knows
// nothing of them.
func (h *hybrid) removePods(ctx context.Context, ns string) error {
	if err := h.kube.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	return poll(ctx, 3*time.Minute, func(ctx context.Context) error {
		pods, err := h.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil || len(pods.Items) > 0 {
			return fmt.Errorf("pods are left (%v)", err)
		}
		jobs, _, err := h.nomad.Jobs().PrefixList(translate.JobIDPrefix(h.ClusterID()))
		if err != nil || len(jobs) > 0 {
			return fmt.Errorf("%d jobs are left (%v)", len(jobs), err)
		}
		return nil
	})
}

// removeDirect does the same for direct jobs.
func (h *hybrid) removeDirect(ctx context.Context, ids []string) error {
	deregister := func(purge bool) error {
		return parallel(len(ids), func(i int) error {
			_, _, err := h.nomad.Jobs().Deregister(ids[i], purge, (&api.WriteOptions{Namespace: directNamespace}).WithContext(ctx))
			return err
		})
	}
	if err := deregister(false); err != nil {
		return err
	}
	err := poll(ctx, 3*time.Minute, func(ctx context.Context) error {
		live, _, err := h.nomad.Allocations().List((&api.QueryOptions{
			Namespace: directNamespace, Filter: `ClientStatus == "running" or ClientStatus == "pending"`,
		}).WithContext(ctx))
		if err != nil || len(live) > 0 {
			return fmt.Errorf("%d allocations are live (%v)", len(live), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return deregister(true)
}
