package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// hybrid is a cluster of one test's own.
type hybrid struct {
	*devcluster.Cluster
	opts  devcluster.Options
	kube  *kubernetes.Clientset
	nomad *api.Client
}

func newHybrid(t *testing.T, ports int, change func(*devcluster.Options)) *hybrid {
	t.Helper()
	dir, err := os.MkdirTemp("", "nke2e")
	if err != nil {
		t.Fatal(err)
	}
	opts := options(dir, ports)
	opts.MockRuntime = true
	opts.NoDocker = true
	change(&opts)
	c, err := devcluster.Up(t.Context(), opts)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				saveLogs(c)
			}
			if err := c.Down(context.Background()); err != nil {
				t.Errorf("stop the hybrid: %v", err)
			}
			_ = os.RemoveAll(dir) // logs only
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	h := &hybrid{Cluster: c, opts: opts}
	if _, h.kube, h.nomad, err = clients(c); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hybrid) start(t *testing.T, name string) {
	t.Helper()
	if err := h.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func (h *hybrid) kill(t *testing.T, name string) {
	t.Helper()
	if err := h.Kill(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

const (
	shortOutage = 8 * time.Second // unreachableAfter
	orphanGuard = 15 * time.Second
)

// TestResilience breaks one part after another under running pods.
func TestResilience(t *testing.T) {
	h := newHybrid(t, ports()+100, func(o *devcluster.Options) {
		o.Configure = func(c *config.Config) {
			c.VirtualNodes[0].UnreachableAfter.Duration = shortOutage
			c.OrphanGuard.Duration = orphanGuard
			c.Kubelet.ServerTLSBootstrap = true
		}
	})
	ns := namespace(t, h.kube)
	t.Run("serving certificate", h.testServingCertificate)
	t.Run("killed during creates and deletes", func(t *testing.T) { h.testKill(t, ns) })
	keep := await(t, h.kube, create(t, h.kube, ns, pod("keep", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)
	t.Run("Nomad away", func(t *testing.T) { h.testNomadAway(t, keep) })
	t.Run("API server away", func(t *testing.T) { h.testAPIServerAway(t, ns, keep) })
	t.Run("node deleted", h.testNodeDeleted)
	t.Run("standby takes over", func(t *testing.T) { h.testStandby(t, ns) })
	t.Run("API server set up anew", func(t *testing.T) { h.testOrphans(t, keep) })
}

// testKill: kill -9 at any moment loses no pod, doubles none, restarts none.
func (h *hybrid) testKill(t *testing.T, ns string) {
	const n = 40
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, create(t, h.kube, ns, pod(fmt.Sprintf("p%02d", i), "", mock, restart(corev1.RestartPolicyAlways))))
		if i == 10 || i == 25 {
			h.kill(t, devcluster.NomadKubelet)
			h.start(t, devcluster.NomadKubelet)
		}
	}
	h.kill(t, devcluster.NomadKubelet)
	h.start(t, devcluster.NomadKubelet)
	for _, p := range pods {
		await(t, h.kube, p, 60*time.Second, "ready", ready)
	}
	for i, p := range pods[:n/2] {
		remove(t, h.kube, p, nil)
		if i == 5 {
			h.kill(t, devcluster.NomadKubelet)
			h.start(t, devcluster.NomadKubelet)
		}
	}
	h.kill(t, devcluster.NomadKubelet)
	h.start(t, devcluster.NomadKubelet)
	for _, p := range pods[:n/2] {
		awaitGone(t, h.kube, p, 60*time.Second)
		awaitNoJob(t, h.nomad, jobID(h.Cluster, p), 60*time.Second)
	}
	for _, p := range pods[n/2:] {
		allocs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
		if err != nil || len(allocs) != 1 || allocs[0].ClientStatus != api.AllocClientStatusRunning || allocs[0].TaskStates["c"].Restarts != 0 {
			t.Errorf("pod %s: %d allocations, %v", p.Name, len(allocs), err)
			continue
		}
		got, err := h.kube.CoreV1().Pods(ns).Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil || got.UID != p.UID || !ready(got) || status(got, "c").RestartCount != 0 {
			t.Errorf("pod %s: %v\n%s", p.Name, err, describe(got))
		}
		if id := translate.AllocID(&got.Status); id != allocs[0].ID {
			t.Errorf("pod %s names allocation %s, Nomad has %s", p.Name, id, allocs[0].ID)
		}
	}
}

func nodeCondition(t *testing.T, k kubernetes.Interface, kind corev1.NodeConditionType) corev1.NodeCondition {
	t.Helper()
	n, err := k.CoreV1().Nodes().Get(t.Context(), config.DefaultVirtualNode, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// testNomadAway: a short outage changes nothing but a condition, a long one
// makes the node NotReady, and the pods outlive both.
func (h *hybrid) testNomadAway(t *testing.T, keep *corev1.Pod) {
	awaitCondition := func(kind corev1.NodeConditionType, want corev1.ConditionStatus, limit time.Duration) corev1.NodeCondition {
		t.Helper()
		var c corev1.NodeCondition
		eventually(t, limit, fmt.Sprintf("node condition %s=%s", kind, want), func() error {
			if c = nodeCondition(t, h.kube, kind); c.Status != want {
				return fmt.Errorf("%s=%s %s %s", kind, c.Status, c.Reason, c.Message)
			}
			return nil
		})
		return c
	}
	h.kill(t, devcluster.Nomad)
	down := time.Now()
	awaitCondition("nomad-kubelet.io/NomadReachable", corev1.ConditionFalse, shortOutage)
	if c := nodeCondition(t, h.kube, corev1.NodeReady); c.Status != corev1.ConditionTrue {
		t.Errorf("Ready=%s already %s after the outage began", c.Status, time.Since(down))
	}
	c := awaitCondition(corev1.NodeReady, corev1.ConditionFalse, 3*shortOutage)
	if c.Reason != "NomadUnreachable" || time.Since(down) < shortOutage {
		t.Errorf("NotReady after %s: %s %s", time.Since(down), c.Reason, c.Message)
	}
	h.start(t, devcluster.Nomad)
	awaitCondition(corev1.NodeReady, corev1.ConditionTrue, 30*time.Second)
	h.stillThere(t, keep)
}

// stillThere checks that the pod is the same, runs, and has one allocation.
func (h *hybrid) stillThere(t *testing.T, p *corev1.Pod) {
	t.Helper()
	got := await(t, h.kube, p, 30*time.Second, "ready", ready)
	if a, b := translate.AllocID(&p.Status), translate.AllocID(&got.Status); a != b || status(got, "c").RestartCount != 0 {
		t.Errorf("allocation %s became %s, %d restarts", a, b, status(got, "c").RestartCount)
	}
	allocs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
	if err != nil || len(allocs) != 1 {
		t.Errorf("%d allocations, %v", len(allocs), err)
	}
}

func (h *hybrid) testAPIServerAway(t *testing.T, ns string, keep *corev1.Pod) {
	h.kill(t, devcluster.APIServer)
	select { // long enough to lose the lease
	case <-time.After(config.DefaultLeaseDuration + 4*time.Second):
	case <-t.Context().Done():
	}
	h.start(t, devcluster.APIServer)
	h.stillThere(t, keep)
	await(t, h.kube, create(t, h.kube, ns, pod("after", "", mock, restart(corev1.RestartPolicyAlways))), 60*time.Second, "ready", ready)
}

func (h *hybrid) testNodeDeleted(t *testing.T) {
	old, err := h.kube.CoreV1().Nodes().Get(t.Context(), config.DefaultVirtualNode, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.kube.CoreV1().Nodes().Delete(t.Context(), old.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the node is back and ready", func() error {
		n, err := h.kube.CoreV1().Nodes().Get(t.Context(), old.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case n.UID == old.UID:
			return errors.New("it is still the old one")
		case len(n.Spec.Taints) == 0 || n.Labels["type"] != "virtual-kubelet":
			return fmt.Errorf("taints %v, labels %v", n.Spec.Taints, n.Labels)
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errors.New("not ready")
	})
}

// testStandby: a second process takes over within seconds of the first's death.
func (h *hybrid) testStandby(t *testing.T, ns string) {
	log := filepath.Join(h.Dir(), "logs", "standby.log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(), "nomad-kubelet"), "run", "--config", h.ConfigFile())
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		_ = cmd.Wait()
		h.start(t, devcluster.NomadKubelet)
	}()
	eventually(t, 20*time.Second, "the second process stands by", func() error {
		data, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(data), "stands by") {
			err = fmt.Errorf("log: %s", data)
		}
		return err
	})
	h.kill(t, devcluster.NomadKubelet)
	killed := time.Now()
	await(t, h.kube, create(t, h.kube, ns, pod("taken-over", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)
	took := time.Since(killed)
	t.Logf("a pod created at the leader's death was ready after %.1f s", took.Seconds())
	if took > 20*time.Second {
		t.Errorf("the standby took over only after %s", took)
	}
}

// testOrphans: an API server that has forgotten everything does not take the
// pods' jobs with it at once, but when nobody intervenes they are reaped.
func (h *hybrid) testOrphans(t *testing.T, keep *corev1.Pod) {
	before := h.runningJobs(t)
	// All of the control plane: a controller manager that outlives its API
	// server's memory hangs on resource versions that are not there any more.
	for _, name := range []string{devcluster.NomadKubelet, devcluster.Scheduler, devcluster.ControllerManager, devcluster.APIServer, devcluster.Etcd} {
		h.kill(t, name)
	}
	if err := os.RemoveAll(filepath.Join(h.Dir(), "etcd")); err != nil {
		t.Fatal(err)
	}
	if _, err := devcluster.Up(t.Context(), h.opts); err != nil {
		t.Fatal(err)
	}
	up := time.Now()
	// A pod of the new cluster runs while the old ones' jobs are left alone.
	ns := namespace(t, h.kube)
	await(t, h.kube, create(t, h.kube, ns, pod("new", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)
	if now := h.runningJobs(t); time.Since(up) < orphanGuard && now < before+1 {
		t.Errorf("%d jobs ran, %d are left %s after the new API server came up", before, now-1, time.Since(up))
	}
	awaitNoJob(t, h.nomad, jobID(h.Cluster, keep), 3*orphanGuard)
	if took := time.Since(up); took < orphanGuard-5*time.Second {
		t.Errorf("orphans were reaped after %s", took)
	}
	eventually(t, 30*time.Second, "only the new pod's job is left", func() error {
		if n := h.runningJobs(t); n != 1 {
			return fmt.Errorf("%d jobs", n)
		}
		return nil
	})
}

func (h *hybrid) runningJobs(t *testing.T) int {
	t.Helper()
	jobs, _, err := h.nomad.Jobs().PrefixList(translate.JobIDPrefix(h.ClusterID()))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, j := range jobs {
		if j.Status == "running" {
			n++
		}
	}
	return n
}
