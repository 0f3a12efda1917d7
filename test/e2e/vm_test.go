package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// futureClass is a runtime of machines that no qemu knows yet.
const futureClass = "nomad-vm-future"

func allowFuture(n *config.VirtualNode) {
	n.Runtimes[futureClass] = translate.Runtime{Driver: "qemu", Config: map[string]any{"machine_type": "pc-q35-99.0"}}
}

// vmPod is the demonstration's VM, booted from its kernel, which is faster than
// from its disk.
func vmPod(name string, opts ...option) *corev1.Pod {
	opts = append([]option{func(p *corev1.Pod) {
		class, grace := "nomad-vm", int64(60)
		p.Annotations = map[string]string{
			translate.AnnotationVMKernel: devcluster.VMKernelPath, translate.AnnotationVMInitrd: devcluster.VMInitrdPath,
			translate.AnnotationVMCmdline: "console=ttyS0 quiet panic=10",
		}
		p.Spec.RuntimeClassName, p.Spec.TerminationGracePeriodSeconds = &class, &grace
		p.Spec.Containers = []corev1.Container{{
			Name: "c", Image: "scratch", Stdin: true, TTY: true,
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("192Mi"),
			}},
			ReadinessProbe: &corev1.Probe{
				ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/seed/user-data"}}}, PeriodSeconds: 1, TimeoutSeconds: 10,
			},
		}}
	}}, opts...)
	return pod(name, "", opts...)
}

// A VM pod from a disk boots a real machine whose console is the log, answers at
// the pod's address, and is shut down by its power button within the grace
// period.
func TestVirtualMachine(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, vmPod("vm", func(p *corev1.Pod) {
		p.Annotations = nil
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ReadinessProbe = devcluster.VMImagePath, nil
	}))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	console := func() string { return logs(t, kube, p, &corev1.PodLogOptions{}) }
	eventually(t, 120*time.Second, "the guest is up", func() error {
		if out := console(); !strings.Contains(out, "demo-vm is up") {
			return fmt.Errorf("console: %q", out)
		}
		return nil
	})
	if out := console(); !strings.Contains(out, "SeaBIOS") {
		t.Errorf("the log does not begin with the firmware: %.200q", out)
	}
	eventually(t, 30*time.Second, "the guest's page", func() error {
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + p.Status.PodIP + ":8080/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
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

// A VM takes what containers take: a probe that is a command, kubectl exec with
// both streams, input and exit code, attach to its console, and cloud-init's
// files from an object. A reboot in the guest is the guest's own affair.
func TestVirtualMachineAsPod(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	userData := "#cloud-config\npassword: s3cret\n"
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "seed"}, StringData: map[string]string{"user-data": userData},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p := create(t, kube, ns, vmPod("vm", func(p *corev1.Pod) {
		p.Annotations[translate.AnnotationVMUserDataFrom] = "secret/seed"
		p.Annotations[translate.AnnotationVMSSHKeys] = "ssh-ed25519 AAAA me"
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("3Gi")}
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo the hook ran >/dev/console"}},
		}}
	}))
	// Ready means that the agent has answered: the probe is a command.
	p = await(t, kube, p, 120*time.Second, "ready", ready)
	t.Logf("ready, by its agent, after %.1f s", time.Since(start).Seconds())

	start = time.Now()
	out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", "echo out; echo err >&2; exit 7")
	if out != "out\n" || errOut != "err\n" || code != 7 {
		t.Errorf("exec: %q, %q, code %d", out, errOut, code)
	}
	t.Logf("exec took %.2f s", time.Since(start).Seconds())
	long := strings.Repeat("0123456789abcdef", 8192)
	if out, errOut, code = execIn(t, p, "c", strings.NewReader(long), "cat"); out != long || code != 0 {
		t.Errorf("exec with input: %d bytes, %q, code %d", len(out), errOut, code)
	}
	if _, errOut, code = execIn(t, p, "c", nil, "/none"); code != 126 || !strings.Contains(errOut, "/none") {
		t.Errorf("a program that is not there: %q, code %d", errOut, code)
	}
	if out, _, _ = execIn(t, p, "c", nil, "cat", "/seed/user-data"); out != userData {
		t.Errorf("user-data %q", out)
	}
	if out, _, _ = execIn(t, p, "c", nil, "cat", "/seed/meta-data"); !strings.Contains(out, string(p.UID)) || !strings.Contains(out, `"local-hostname":"vm"`) || !strings.Contains(out, "ssh-ed25519 AAAA me") {
		t.Errorf("meta-data %q", out)
	}
	if out, _, _ = execIn(t, p, "c", nil, "cat", "/sys/block/vda/size"); strings.TrimSpace(out) != fmt.Sprint(3<<30/512) {
		t.Errorf("the root disk has %s sectors", out)
	}
	job, _, err := nomad.Jobs().Info(jobID(cluster, p), nil)
	if err != nil || strings.Contains(deep(t, job), "s3cret") {
		t.Errorf("the job holds what is secret, or is not there: %v", err)
	}

	answered := make(chan struct{})
	seen := firstSeen{want: "answer is 42", then: func() { close(answered) }}
	in, say := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- attachTo(t, p, true, corev1.PodAttachOptions{Container: "c", Stdin: true, Stdout: true, TTY: true},
			remotecommand.StreamOptions{Stdin: in, Stdout: &seen, Tty: true})
	}()
	eventually(t, 30*time.Second, "an answer on the console", func() error {
		if _, err := say.Write([]byte("echo answer is $((6*7))\r")); err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-time.After(time.Second): // what was typed before the console was there is lost
			return fmt.Errorf("nothing yet")
		}
	})
	say.Close()
	<-done
	eventually(t, 30*time.Second, "the console is in the log", func() error {
		if out := logs(t, kube, p, &corev1.PodLogOptions{}); strings.Count(out, "answer is 42") < 1 {
			return fmt.Errorf("console: %q", out[max(0, len(out)-300):])
		}
		return nil
	})

	was := strings.Count(logs(t, kube, p, &corev1.PodLogOptions{}), "demo-vm is up")
	_, _, _ = execIn(t, p, "c", nil, "sh", "-c", "(sleep 1; reboot) >/dev/null 2>&1 &")
	eventually(t, 90*time.Second, "the guest is up again", func() error {
		if n := strings.Count(logs(t, kube, p, &corev1.PodLogOptions{}), "demo-vm is up"); n != was+1 {
			return fmt.Errorf("up %d times", n)
		}
		return nil
	})
	if st := status(await(t, kube, p, time.Minute, "ready again", ready), "c"); st.RestartCount != 0 {
		t.Errorf("a reboot in the guest counted as %d restarts", st.RestartCount)
	}
	remove(t, kube, p, nil)
	eventually(t, 30*time.Second, "the hook and the power button", func() error {
		if out := logs(t, kube, p, &corev1.PodLogOptions{}); !strings.Contains(out, "the hook ran") || !strings.Contains(out, "demo-vm powers off") {
			return fmt.Errorf("console: %q", out[max(0, len(out)-200):])
		}
		return nil
	})
	awaitGone(t, kube, p, 60*time.Second)
}

// A guest that crashes is a container that crashes, and one that powers off has
// ended well.
func TestVirtualMachineEnds(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	for _, tc := range []struct {
		name, script string
		phase        corev1.PodPhase
		code         int32
	}{
		{"off", "(sleep 1; poweroff) >/dev/null 2>&1 &", corev1.PodSucceeded, 0},
		{"crash", "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &", corev1.PodFailed, 1},
	} {
		p := create(t, kube, ns, vmPod(tc.name, restart(corev1.RestartPolicyNever)))
		p = await(t, kube, p, 120*time.Second, "ready", ready)
		_, _, _ = execIn(t, p, "c", nil, "sh", "-c", tc.script)
		p = await(t, kube, p, 60*time.Second, string(tc.phase), phase(tc.phase))
		if st := status(p, "c"); st.State.Terminated == nil || st.State.Terminated.ExitCode != tc.code {
			t.Errorf("%s: %+v", tc.name, st.State)
		}
	}
}

// What no VM can be made of is said so, and nothing half-started stays.
func TestVirtualMachineRefused(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	for _, tc := range []struct {
		name string
		opt  option
		want []string
	}{
		{"outside", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "/etc/passwd" }, []string{"spec.containers[c].image", "hostAccess.imagePaths"}},
		{"little", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceMemory] = resource.MustParse("192") // for 192Mi
		}, []string{"spec.containers[c].resources.requests.memory", "give it 17Mi"}},
		{"hotplug", func(p *corev1.Pod) { p.Annotations["nomad-kubelet.io/vm-hotplug"] = "true" }, []string{"metadata.annotations[nomad-kubelet.io/vm-hotplug]", "docs/vms.md"}},
	} {
		p := create(t, kube, ns, vmPod(tc.name, tc.opt))
		p = await(t, kube, p, 20*time.Second, "failed", phase(corev1.PodFailed))
		event := eventOf(t, kube, p, p.Status.Reason)
		for _, want := range tc.want {
			if !strings.Contains(p.Status.Message, want) || !strings.Contains(event, want) {
				t.Errorf("%s: %q is not in message %q and event %q", tc.name, want, p.Status.Message, event)
			}
		}
		if _, _, err := nomad.Jobs().Info(jobID(cluster, p), nil); err == nil {
			t.Errorf("%s: there is a job", tc.name)
		}
	}
	// No client has room for it: said by the scheduler, or of a pod that is past it by us.
	for name, node := range map[string]string{"too-large": "", "too-large-bound": config.DefaultVirtualNode} {
		p := create(t, kube, ns, vmPod(name, func(p *corev1.Pod) {
			p.Spec.NodeName = node
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("900Ti")}
		}))
		if node == "" {
			if message := eventOf(t, kube, p, "FailedScheduling"); !strings.Contains(message, "Insufficient ephemeral-storage") {
				t.Errorf("%s: event %q", name, message)
			}
		} else {
			p = await(t, kube, p, 20*time.Second, "waits for room", func(p *corev1.Pod) bool {
				return strings.Contains(conditionOf(p, translate.ConditionPlaced).Message, "disk")
			})
			t.Logf("%s: %s", name, conditionOf(p, translate.ConditionPlaced).Message)
		}
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 30*time.Second)
	}
	noDisk := filepath.Join(devcluster.VMImageDir, ns+".img")
	if err := os.WriteFile(noDisk, bytes.Repeat([]byte("no disk"), 100), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(noDisk)
	web := httptest.NewServer(http.FileServer(http.Dir(devcluster.VMImageDir)))
	defer web.Close()
	for _, tc := range []struct {
		name string
		opt  option
		want string
	}{
		// On a node without a cache Nomad fetches.
		{"checksum", func(p *corev1.Pod) {
			onSecondNode(p)
			p.Spec.Containers[0].Image = web.URL + "/demo.img"
			p.Annotations = map[string]string{translate.AnnotationImageChecksum: "sha256:" + strings.Repeat("0", 64)}
		}, "hecksum"},
		{"no-disk", func(p *corev1.Pod) { p.Spec.Containers[0].Image = noDisk }, "is no disk image"},
		{"no-file", func(p *corev1.Pod) { p.Spec.Containers[0].Image = devcluster.VMImageDir + "/none.img" }, "none.img"},
		{"too-small", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image = devcluster.VMImagePath
			p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("8Mi")}
		}, "more than the disk's 8 MiB"},
		{"bad-seed", func(p *corev1.Pod) { p.Annotations[translate.AnnotationVMUserData] = "#cloud-config\na: [\n" }, "user-data"},
	} {
		p := create(t, kube, ns, vmPod(tc.name, tc.opt))
		eventually(t, 60*time.Second, tc.name, func() error {
			if message := eventOf(t, kube, p, "FailedMount"); !strings.Contains(message, tc.want) {
				return fmt.Errorf("event %q", message)
			}
			return nil
		})
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 30*time.Second)
		awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
	}
}

// What qemu itself refuses, such as to be a machine of a version that it does not know,
// is its container's last word.
func TestVirtualMachineRefusedByQemu(t *testing.T) {
	t.Parallel()
	if _, err := kube.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: futureClass}, Handler: futureClass}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	p := create(t, kube, namespace(t, kube), vmPod("vm", restart(corev1.RestartPolicyNever), func(p *corev1.Pod) { p.Spec.RuntimeClassName = new(futureClass) }))
	p = await(t, kube, p, 60*time.Second, "failed", phase(corev1.PodFailed))
	if st := status(p, "c").State.Terminated; st == nil || st.ExitCode != 1 || !strings.Contains(st.Message, "unsupported machine type") {
		t.Errorf("%+v", st)
	}
}
