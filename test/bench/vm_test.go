package bench

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

var (
	vmRounds  = flag.Int("vm-rounds", 5, "how often to start a VM by each of three ways")
	vmAtOnce  = flag.Int("vms", 20, "how many VMs to create at once")
	vmConsole = flag.Int("vm-console-kib", 2048, "how much a guest writes to its console, in KiB")
)

const (
	// vmMiB is the memory of the benchmarks' guests, and vmCmdline what their kernel is told.
	vmMiB     = 128
	vmCmdline = "console=ttyS0 quiet panic=10"
	vmTimeout = 2 * time.Minute
	// vmPort is where a guest has its page. That it answers is the end of its start,
	// whoever started it.
	vmPort = 8080
	// vmPing is between questions for it: what the benchmark may be wrong by.
	vmPing = 20 * time.Millisecond
	// vmPatience is how long a question is worth waiting for, and vmCrowdPatience where
	// ten guests share a core: one that is given up costs its guest as much as any.
	vmPatience, vmCrowdPatience = time.Second, 10 * time.Second
)

func vmPod(name string) *corev1.Pod {
	p := pod(name)
	class, grace := "nomad-vm", int64(30)
	p.Annotations = map[string]string{
		translate.AnnotationVMKernel: devcluster.VMKernelPath, translate.AnnotationVMInitrd: devcluster.VMInitrdPath,
		translate.AnnotationVMCmdline: vmCmdline,
	}
	p.Spec.RuntimeClassName, p.Spec.TerminationGracePeriodSeconds = &class, &grace
	p.Spec.Containers[0] = corev1.Container{
		Name: "c", Image: "scratch", Ports: []corev1.ContainerPort{{ContainerPort: vmPort}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: *resource.NewQuantity(vmMiB<<20, resource.BinarySI),
		}},
	}
	return p
}

// answers waits for the guest's page. A question that is not answered within patience
// is put again: one that came before the guest has booted may get lost.
func answers(ctx context.Context, address string, patience time.Duration) error {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Get("http://" + address + "/")
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil && strings.Contains(string(body), "Hello from a VM pod") {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w (%v)", address, ctx.Err(), err)
		case <-time.After(vmPing):
		}
	}
}

// vmRun is one start: when the guest answered, and what it then costs in memory.
type vmRun struct {
	ready    time.Duration
	resident float64 // MiB
}

// BenchmarkVM takes the time from create to the first answer of a guest's web
// server, by turns with that of the same guest in a job such as a user of Nomad
// would write, and under a qemu that the benchmark starts itself.
func BenchmarkVM(b *testing.B) {
	h := hy
	ns := h.namespace(b)
	ways := []struct {
		name string
		run  func(*testing.B, string) vmRun
	}{
		{"pod", func(b *testing.B, name string) vmRun { return h.vmAsPod(b, ns, name) }},
		{"Nomad job", h.vmAsJob},
		{"qemu", h.vmAlone},
	}
	took, resident := make([][]time.Duration, len(ways)), make([][]float64, len(ways))
	// The first round warms up and is not counted.
	for i := range *vmRounds + 1 {
		for w, way := range ways {
			must(b, h.quiet(b.Context()))
			r := way.run(b, fmt.Sprintf("vm%02d", i))
			if i > 0 {
				took[w], resident[w] = append(took[w], r.ready), append(resident[w], r.resident)
			}
		}
	}
	b.ReportMetric(float64((figures.Median(took[0]) - figures.Median(took[1])).Milliseconds()), "ms-over-Nomad")
	report.Add("VM, create to its first answer", spread(took[0]),
		fmt.Sprintf("job of the same VM on Nomad: %s; qemu: %s", spread(took[1]), spread(took[2])))
	report.Add(fmt.Sprintf("memory of a VM of %d MiB with all that is beside it", vmMiB), mib(resident[0]),
		fmt.Sprintf("on Nomad %s, qemu alone %s", mib(resident[1]), mib(resident[2])))
	for w, way := range ways {
		report.Detail("vm "+way.name+" [ms]", msList(took[w]))
		report.Detail("vm "+way.name+" memory [MiB]", resident[w])
	}
}

func mib(list []float64) string {
	least, most := list[0], list[0]
	for _, v := range list {
		least, most = min(least, v), max(most, v)
	}
	return fmt.Sprintf("%.0f to %.0f MiB", least, most)
}

func (h *hybrid) vmAsPod(b *testing.B, ns, name string) vmRun {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), vmTimeout)
	defer cancel()
	start := time.Now()
	p, err := h.kube.CoreV1().Pods(ns).Create(ctx, vmPod(name), metav1.CreateOptions{})
	must(b, err)
	_, err = h.pods.await(ctx, []*corev1.Pod{p})
	must(b, err)
	p, err = h.kube.CoreV1().Pods(ns).Get(ctx, name, metav1.GetOptions{})
	must(b, err)
	must(b, answers(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(vmPort)), vmPatience))
	r := vmRun{ready: time.Since(start), resident: h.allocMemory(b, translate.JobID(h.ClusterID(), p.UID), h.profile.Namespace)}
	must(b, h.removePods(b.Context(), ns))
	return r
}

// vmArgs are what a guest needs of qemu beside what Nomad's driver gives it.
func vmArgs(hostPort int) []string {
	return []string{
		"-m", strconv.Itoa(vmMiB), "-kernel", devcluster.VMKernelPath, "-initrd", devcluster.VMInitrdPath, "-append", vmCmdline,
		"-netdev", fmt.Sprintf("user,id=net0,hostfwd=tcp::%d-:%d", hostPort, vmPort), "-device", "virtio-net-pci,netdev=net0",
	}
}

func (h *hybrid) vmAsJob(b *testing.B, name string) vmRun {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), vmTimeout)
	defer cancel()
	job := &api.Job{
		ID: &name, Name: &name, Namespace: new(directNamespace), Type: new("service"), Datacenters: []string{"*"},
		TaskGroups: []*api.TaskGroup{{
			Name: new("vm"), Networks: []*api.NetworkResource{{Mode: "bridge"}},
			Tasks: []*api.Task{{
				Name: "vm", Driver: "qemu",
				// The driver wants an image within the allocation; the guest has no use for it.
				Config: map[string]any{
					"image_path": "local/none.img", "accelerator": "tcg", "drive_interface": "none", "args": vmArgs(vmPort),
				},
				Templates: []*api.Template{{EmbeddedTmpl: new(strings.Repeat("x", 512)), DestPath: new("local/none.img"), ChangeMode: new("noop")}},
				Resources: &api.Resources{CPU: new(50), MemoryMB: new(vmMiB + 128), MemoryMaxMB: new(vmMiB + 1152)},
			}},
		}},
	}
	start := time.Now()
	must(b, h.register(ctx, job))
	_, err := h.direct.await(ctx, []string{name})
	must(b, err)
	q := (&api.QueryOptions{Namespace: directNamespace}).WithContext(ctx)
	allocs, _, err := h.nomad.Jobs().Allocations(name, false, q)
	must(b, err)
	alloc, _, err := h.nomad.Allocations().Info(allocs[0].ID, q)
	must(b, err)
	must(b, answers(ctx, net.JoinHostPort(alloc.NetworkStatus.Address, strconv.Itoa(vmPort)), vmPatience))
	r := vmRun{ready: time.Since(start), resident: h.allocMemory(b, name, directNamespace)}
	must(b, h.removeDirect(b.Context(), []string{name}))
	return r
}

func (h *hybrid) vmAlone(b *testing.B, _ string) vmRun {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), vmTimeout)
	defer cancel()
	port := *portBase + 18
	args := append([]string{"-machine", "type=pc,accel=tcg", "-nographic", "-serial", "null", "-monitor", "none"}, vmArgs(port)...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	start := time.Now()
	must(b, cmd.Start())
	must(b, answers(ctx, fmt.Sprintf("127.0.0.1:%d", port), vmPatience))
	r := vmRun{ready: time.Since(start)}
	var err error
	r.resident, err = proportional(cmd.Process.Pid)
	must(b, err)
	must(b, cmd.Process.Kill())
	_ = cmd.Wait()
	return r
}

// allocMemory is what an allocation's processes take, Nomad's own for it included.
// They have its ID in their command line or environment.
func (h *hybrid) allocMemory(b *testing.B, job, namespace string) float64 {
	b.Helper()
	allocs, _, err := h.nomad.Jobs().Allocations(job, false, &api.QueryOptions{Namespace: namespace})
	must(b, err)
	if len(allocs) != 1 {
		b.Fatalf("job %s has %d allocations", job, len(allocs))
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(b, err)
	sum := 0.0
	for _, dir := range dirs {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if !bytes.Contains(line, []byte(allocs[0].ID)) && !bytes.Contains(env, []byte(allocs[0].ID)) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if m, err := proportional(pid); err == nil { // it may have ended
			sum += m
		}
	}
	return sum
}

// proportional is a process's memory in MiB, with its share of what it has in
// common with others.
func proportional(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		var kb float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kb); err == nil {
			return kb / 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d tells no Pss", pid)
}

// BenchmarkVMsAtOnce creates many VMs at once; each must answer, and none may have
// been started twice.
func BenchmarkVMsAtOnce(b *testing.B) {
	h, n := hy, *vmAtOnce
	ns := h.namespace(b)
	ctx, cancel := context.WithTimeout(b.Context(), 3*vmTimeout)
	defer cancel()
	must(b, h.quiet(ctx))
	start := time.Now()
	pods, err := h.create(ctx, ns, n, vmPod)
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	started := time.Since(start)
	took := make([]time.Duration, n)
	must(b, parallel(n, func(i int) error {
		p, err := h.kube.CoreV1().Pods(ns).Get(ctx, pods[i].Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := answers(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(vmPort)), vmCrowdPatience); err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		took[i] = time.Since(start)
		return nil
	}))
	list, err := h.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
	must(b, err)
	for _, p := range list.Items {
		if s := p.Status.ContainerStatuses; p.Status.Phase != corev1.PodRunning || len(s) != 1 || s[0].RestartCount != 0 {
			b.Errorf("pod %s is %s, %+v", p.Name, p.Status.Phase, s)
		}
	}
	must(b, h.removePods(b.Context(), ns))
	report.Add(fmt.Sprintf("%d VMs at once, create to answer", n), spread(took), fmt.Sprintf("all Running after %.1f s", started.Seconds()))
}

// BenchmarkVMConsole has a guest write to its serial console, the pod's log, as
// fast as its emulated chip lets it, and follows the log. What is beside it is the
// guest's own time for writing.
func BenchmarkVMConsole(b *testing.B) {
	h := hy
	ns := h.namespace(b)
	ctx, cancel := context.WithTimeout(b.Context(), vmTimeout)
	defer cancel()
	p, err := h.kube.CoreV1().Pods(ns).Create(ctx, vmPod("console"), metav1.CreateOptions{})
	must(b, err)
	_, err = h.pods.await(ctx, []*corev1.Pod{p})
	must(b, err)
	p, err = h.kube.CoreV1().Pods(ns).Get(ctx, p.Name, metav1.GetOptions{})
	must(b, err)
	must(b, answers(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(vmPort)), vmPatience))
	s := &streamed{h: h, pod: p}
	s.rest, err = h.RESTConfig()
	must(b, err)
	log, err := h.kube.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	must(b, err)
	defer log.Close()

	lines := *vmConsole << 10 / 64
	arrived := make(chan error, 1)
	var begun, ended time.Time
	go func() { arrived <- followConsole(log, lines, &begun, &ended) }()
	var out bytes.Buffer
	// Raw: the terminal would write a carriage return before each newline.
	script := fmt.Sprintf(`stty -F /dev/ttyS0 raw -echo; echo >/dev/ttyS0; echo BEGIN >/dev/ttyS0
read -r a _ </proc/uptime; awk 'BEGIN{for(i=1;i<=%d;i++) printf "%%063d\n", i}' >/dev/ttyS0; read -r b _ </proc/uptime; echo $a $b`, lines)
	// The agent may answer later than the web server does.
	must(b, poll(ctx, time.Minute, func(ctx context.Context) error { return s.podExec(ctx, []string{"true"}, nil, io.Discard) }))
	must(b, s.podExec(ctx, []string{"sh", "-c", script}, nil, &out))
	must(b, <-arrived)
	var from, to float64
	if _, err := fmt.Sscan(out.String(), &from, &to); err != nil {
		b.Fatalf("the guest said %q", out.String())
	}
	guest, whole := time.Duration((to-from)*float64(time.Second)), ended.Sub(begun)
	size := int64(lines * 64)
	b.ReportMetric(rate(size, whole), "MB/s")
	report.Add(fmt.Sprintf("console of a VM, %d KiB by logs -f", size>>10), fmt.Sprintf("%.2f MB/s, none missing", rate(size, whole)),
		fmt.Sprintf("%.2f MB/s as the guest writes", rate(size, guest)))
	must(b, h.removePods(b.Context(), ns))
}

// followConsole takes the numbered lines that follow BEGIN.
func followConsole(log io.Reader, lines int, begun, ended *time.Time) error {
	var text strings.Builder
	buf := make([]byte, 64<<10)
	want := 0
	for {
		n, err := log.Read(buf)
		text.Write(buf[:n])
		rest := text.String()
		for {
			line, after, whole := strings.Cut(rest, "\n")
			if !whole {
				break
			}
			rest = after
			line = strings.TrimSuffix(line, "\r")
			switch {
			case line == "BEGIN":
				*begun, want = time.Now(), 1
			case want > 0:
				if line != fmt.Sprintf("%063d", want) {
					return fmt.Errorf("line %d of the console is %q", want, line)
				}
				if want++; want > lines {
					*ended = time.Now()
					return nil
				}
			}
		}
		text.Reset()
		text.WriteString(rest)
		if err != nil {
			return fmt.Errorf("the log ended at line %d: %w", want, err)
		}
	}
}
