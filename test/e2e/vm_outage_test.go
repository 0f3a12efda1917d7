package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The agent of a Nomad client is stopped, killed and started under a VM whose guest has
// the pod's address, and away long enough for the server to miss it: the guest answers
// all through, and is the same machine in the same process afterwards.
//
// It is killed after it has been stopped once, since it writes down what networks there
// are when it is stopped, or once a minute (docs/operations.md, "A client's agent that
// is killed").
func TestVirtualMachineOutlivesAgent(t *testing.T) {
	h := newHybrid(t, ports()+300, func(o *devcluster.Options) {
		// The image is the shared hybrid's.
		o.NoDocker, o.CacheDir, o.SplitNomad = false, "", true
		o.ClientHCL = withTap(deploynomad.Client)
		o.Configure = func(c *config.Config) { allowTap(&c.VirtualNodes[0]) }
	})
	if _, err := h.kube.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: tapClass}, Handler: tapClass}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, h.kube)
	p := create(t, h.kube, ns, vmPod("vm", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new(tapClass)
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}}}
	}))
	p = await(t, h.kube, p, 120*time.Second, "ready", ready)
	ip := p.Status.PodIP
	was := qemuOf(t, p)

	asked := watchPage(t, "http://"+ip+":8080/")
	h.stopInOrder(t, devcluster.NomadClient)
	h.start(t, devcluster.NomadClient)
	eventually(t, 60*time.Second, "the agent has found its allocations", func() error {
		out, err := h.execInVM(t, p, "true")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	h.kill(t, devcluster.NomadClient)
	await(t, h.kube, p, 90*time.Second, "told as out of sight", func(p *corev1.Pod) bool {
		return conditionOf(p, corev1.PodReady).Reason == "NomadClientDisconnected"
	})
	h.start(t, devcluster.NomadClient)
	p = await(t, h.kube, p, 90*time.Second, "ready", ready)
	// Nomad looks at the allocations that it has found once more while it starts.
	pause(t, 5*time.Second)
	times, misses := asked()
	t.Logf("the guest was asked %d times", times)
	if len(misses) > 0 || times < 20 {
		t.Errorf("of %d questions the guest has left without an answer: %v", times, misses)
	}
	p = await(t, h.kube, p, 30*time.Second, "ready", ready)
	if st := status(p, "c"); st.RestartCount != 0 || p.Status.PodIP != ip {
		t.Errorf("address %s, was %s; %+v", p.Status.PodIP, ip, st)
	}
	if now := qemuOf(t, p); now != was {
		t.Errorf("qemu is process %s, was %s", now, was)
	}
	h.oneAllocation(t, p)
	if up := strings.Count(logs(t, h.kube, p, &corev1.PodLogOptions{}), "demo-vm is up"); up != 1 {
		t.Errorf("the guest has come up %d times", up)
	}
	// What comes after finds the machine: its agent, and its power button.
	out, err := h.execInVM(t, p, "ip", "-4", "-o", "addr", "show", "scope", "global")
	if err != nil || !strings.Contains(out, " "+ip+"/") {
		t.Errorf("exec: %q %v", out, err)
	}
	remove(t, h.kube, p, nil)
	awaitGone(t, h.kube, p, 60*time.Second)
	awaitNoJob(t, h.nomad, jobID(h.Cluster, p), 20*time.Second)
	if left := processesOf(allocOf(p)); len(left) > 0 {
		t.Errorf("of the VM there is left: %v", left)
	}
}

// execInVM runs a command by kubectl.
func (h *hybrid) execInVM(t *testing.T, p *corev1.Pod, command ...string) (string, error) {
	t.Helper()
	args := append([]string{"--kubeconfig", h.KubeconfigFile(), "-n", p.Namespace, "exec", p.Name, "--"}, command...)
	out, err := exec.CommandContext(t.Context(), filepath.Join(binDir(), "kubectl"), args...).CombinedOutput()
	return string(out), err
}

func allocOf(p *corev1.Pod) string { return translate.AllocID(&p.Status) }

// qemuOf is the process of a pod's VM, with the time of its start.
func qemuOf(t *testing.T, p *corev1.Pod) string {
	t.Helper()
	all := slices.DeleteFunc(processesOf(allocOf(p)), func(s string) bool { return !strings.Contains(s, "qemu-system") })
	if len(all) != 1 {
		t.Fatalf("pod %s has the VMs %v", p.Name, all)
	}
	return all[0]
}

// processesOf are those that name the allocation: their number, program and start in
// the kernel's ticks.
func processesOf(alloc string) (out []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // it may have ended
		stat, _ := os.ReadFile(filepath.Join(dir, "stat"))
		fields := strings.Fields(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]))
		name, _, _ := strings.Cut(string(line), "\x00")
		const start = 20 // of proc(5)'s fields the 22nd, the first here being the 2nd's end
		if strings.Contains(string(line), alloc) && len(fields) > start {
			out = append(out, fmt.Sprintf("%s %s since %s", filepath.Base(dir), filepath.Base(name), fields[start]))
		}
	}
	return out
}

// watchPage asks for a page until it is told to stop, and tells what went wrong.
func watchPage(t *testing.T, url string) (stop func() (times int, misses []string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	var times int
	var misses []string
	done.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			if body, err := page(url); !strings.Contains(body, "Hello from a VM pod") {
				misses = append(misses, fmt.Sprintf("%s: %q %v", began.Format(time.TimeOnly), body, err))
			}
			times++
			pause(t, 200*time.Millisecond)
		}
	})
	return func() (int, []string) { cancel(); done.Wait(); return times, misses }
}
