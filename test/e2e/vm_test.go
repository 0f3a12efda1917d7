package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// A VM pod boots a real machine whose console is the log, answers at the pod's
// address, and is shut down by its power button within the grace period.
func TestVirtualMachine(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("vm", "", func(p *corev1.Pod) {
		class, grace := "nomad-vm", int64(60)
		p.Spec.RuntimeClassName, p.Spec.TerminationGracePeriodSeconds = &class, &grace
		p.Spec.Containers = []corev1.Container{{
			Name: "vm", Image: devcluster.VMImagePath,
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("192Mi"),
			}},
		}}
	}))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	console := func() string { return logs(t, kube, p, &corev1.PodLogOptions{}) }
	eventually(t, 120*time.Second, "the guest is up", func() error {
		if out := console(); !strings.Contains(out, "demo-vm is up") {
			return fmt.Errorf("console: %q", out)
		}
		return nil
	})
	eventually(t, 30*time.Second, "the guest's page", func() error {
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + p.Status.PodIP + ":8080/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		// The memory it tells is the guest's, near what was asked for.
		if err == nil && !strings.Contains(string(body), "Hello from a VM pod") {
			err = fmt.Errorf("page: %s", body)
		}
		return err
	})
	start := time.Now()
	remove(t, kube, p, nil)
	eventually(t, 30*time.Second, "the guest heard its power button", func() error {
		if out := console(); !strings.Contains(out, "demo-vm powers off") {
			return fmt.Errorf("console: %q", out[max(0, len(out)-200):])
		}
		return nil
	})
	awaitGone(t, kube, p, 45*time.Second)
	t.Logf("shut down and gone after %.1f s", time.Since(start).Seconds())
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
}

// A disk image outside the allowed directories, or none at all, is said so.
func TestVirtualMachineRefused(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	class := "nomad-vm"
	p := create(t, kube, ns, pod("outside", "", func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = &class
		p.Spec.Containers = []corev1.Container{{Name: "vm", Image: "/etc/passwd"}}
	}))
	p = await(t, kube, p, 20*time.Second, "failed", phase(corev1.PodFailed))
	if !strings.Contains(p.Status.Message, "hostAccess.imagePaths") {
		t.Errorf("message: %s", p.Status.Message)
	}
}
