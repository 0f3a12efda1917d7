package netbridge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// machineEnv says that this process stands in a network namespace of its own.
	machineEnv = "NETBRIDGE_BED_MACHINE"
	// hybridPorts begin the hybrid's; E2E_PORT_BASE moves them.
	hybridPorts = 25000
	// dnsAddress is where the agent answers pods.
	dnsAddress = "169.254.20.53"
)

// nomad-kubelet and the agent keep these words apart: a job that waits for another
// word would wait for ever.
func TestOneWordForReady(t *testing.T) {
	if translate.NetbridgeMeta != agent.MetaKey || translate.NetbridgeReady != agent.MetaReady {
		t.Errorf("jobs wait for %s=%s, the agent writes %s=%s", translate.NetbridgeMeta, translate.NetbridgeReady, agent.MetaKey, agent.MetaReady)
	}
}

// A Kubernetes with a virtual node, Nomad and netbridge's agent on one machine,
// which is a network namespace, and a node of the cluster beside it.
func TestPodsOfKubernetes(t *testing.T) {
	needs(t)
	netlab.Root(t, "nomad", "dockerd", "kube-apiserver", "nomad-kubelet", "kubectl", "kube-proxy", "unshare",
		"qemu-system-x86_64", "mkfs.fat", "mcopy", "syslinux")
	if os.Getenv(machineEnv) == "" {
		// From within there is no way to Debian's packages.
		if err := devcluster.BuildVMImage(t.Context(), cacheDir(t)); err != nil {
			t.Fatal(err)
		}
		inOwnNamespace(t)
		return
	}
	here := netlab.Here(t, "machine")
	here.Run("ip link set lo up")
	b := bedIn(t, here, false)
	k8s := b.host("k8s/k8s1", 1, 21)
	k8s.flannel()
	k8s.start()
	k8s.until("its addresses", func(st agent.Status) bool { return st.Own.Host.IsValid() && len(st.Drift) == 0 })
	far := k8s.pod()
	names := nameServers(t, b, far)
	machine := b.machine(here, "nomad/machine", netip.MustParseAddr("192.168.101.1"), func(c map[string]any) {
		c["node"] = map[string]any{"kind": "nomad", "endpoint": "192.168.101.1"}
		c["nomad"] = map[string]any{"address": fmt.Sprintf("http://127.0.0.1:%d", portBase()+6)}
		c["dns"] = map[string]any{"address": dnsAddress, "upstream": []string{k8s.ep.String() + ":53"}}
	})
	c, kube := hybrid(t, machine)

	// A pod that comes before the network waits, and says for what.
	first := podOf(t, kube, "first")
	eventually(t, "pod that says what it waits for", 30*time.Second, func() bool {
		for _, cond := range podNow(t, kube, first).Status.Conditions {
			if cond.Type == translate.ConditionPlaced && cond.Status == corev1.ConditionFalse {
				return strings.Contains(cond.Message, "missing network") || strings.Contains(cond.Message, "${meta.netbridge} = ready")
			}
		}
		return false
	})
	machine.start()
	machine.until("its peer", func(st agent.Status) bool { return len(st.Peers) == 1 && len(st.Drift) == 0 })
	began := time.Now()
	if err := c.Signal(devcluster.Nomad, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	one := podIP(t, kube, first)
	t.Logf("the pod that waited is ready %s after Nomad was told to look for the network", time.Since(began))
	began = time.Now()
	two := podIP(t, kube, podOf(t, kube, "second"))
	t.Logf("another pod is ready %s after it was made", time.Since(began))
	st, err := machine.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{one, two} {
		if !st.Own.CIDRs[0].Contains(netip.MustParseAddr(ip)) {
			t.Errorf("a pod's address in Kubernetes is %s, the client's block %s", ip, st.Own.CIDRs[0])
		}
	}
	if seen := whoami(t, far, one); seen != far.ip {
		t.Errorf("the cluster's pod %s is seen as %s", far.ip, seen)
	}
	if seen := kubectl(t, c, "exec", "first", "--", "sh", "-c", `printf 'GET `+who+` HTTP/1.0\r\n\r\n' | nc `+two+" 8080"); !strings.HasSuffix(seen, one) {
		t.Errorf("the pod at %s is seen by the other as %s", one, seen)
	}
	// And from the pod to the cluster's.
	if seen := heard(t, far, func(port string) {
		kubectl(t, c, "exec", "first", "--", "sh", "-c", "echo hello | nc "+far.ip+" "+port)
	}); seen != one {
		t.Errorf("the cluster's pod is called by %s, not %s", seen, one)
	}
	names.check(t, c, b)
	kubeProxy(t, c)
	(&services{t: t, c: c, kube: kube, far: far}).check(one, two)
	forwards(t, c, "first")
	guest(t, c, kube, far, st.Own.CIDRs[0], one)
	(&services{t: t, c: c, kube: kube, far: far}).mixed(names)
	for _, name := range []string{"first", "second", "vm"} {
		if err := kube.CoreV1().Pods("default").Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}); err != nil {
			t.Fatal(err)
		}
	}
	machine.until("its addresses back", func(st agent.Status) bool { return st.Used == 0 })
}

// inOwnNamespace runs the test that calls it once more, in a network namespace.
func inOwnNamespace(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--net", self, "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "8m")
	cmd.Env = append(os.Environ(), machineEnv+"=1", "NETBRIDGE="+filepath.Dir(program))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
}

// hybrid is a control plane, Nomad and nomad-kubelet, whose pods join the machine's
// network.
func hybrid(t *testing.T, machine *host) (*devcluster.Cluster, *kubernetes.Clientset) {
	t.Helper()
	return cluster(t, devcluster.Options{
		VMImage: true,
		// deploy/nomad/client.hcl tells of it.
		ClientHCL:     strings.Replace(deploynomad.Client, `"mknod", `, `"mknod", "net_admin", `, 1),
		ExtraNomadHCL: fmt.Sprintf("client {\n  network_interface = \"seg1\"\n  cni_path = \"%s:%s\"\n  cni_config_dir = %q\n}\n", filepath.Dir(program), cniDir, filepath.Join(machine.dir, "cni")),
		Configure: func(c *config.Config) {
			c.VirtualNodes[0].Network = translate.NetworkNetbridge
			c.VirtualNodes[0].Taints = &[]corev1.Taint{}
			c.VirtualNodes[0].ClusterDNS = []string{dnsAddress}
			c.VirtualNodes[0].Runtimes = map[string]translate.Runtime{
				"nomad-vm": {Driver: "qemu", Config: map[string]any{translate.RowNetwork: translate.VMNetworkTap}},
			}
		},
	}, devcluster.NomadKubelet, devcluster.Nomad)
}

// portBase begins the ports of a hybrid.
func portBase() int {
	if n, err := strconv.Atoi(os.Getenv("E2E_PORT_BASE")); err == nil {
		return n
	}
	return hybridPorts
}

// cluster starts a hybrid with a Docker of its own. When the test fails, it shows the
// ends of these components' logs.
func cluster(t *testing.T, o devcluster.Options, logs ...string) (*devcluster.Cluster, *kubernetes.Clientset) {
	t.Helper()
	kubelet, err := exec.LookPath("nomad-kubelet")
	if err != nil {
		t.Fatal(err)
	}
	if o.BinDir, err = filepath.Abs(filepath.Dir(kubelet)); err != nil {
		t.Fatal(err)
	}
	if o.Dir == "" {
		if o.Dir, err = os.MkdirTemp("", "nke2e"); err != nil {
			t.Fatal(err)
		}
	}
	o.PortBase, o.OwnDocker, o.CacheDir, o.Out = portBase(), !o.NoDocker, cacheDir(t), os.Stdout
	c, err := devcluster.Up(t.Context(), o)
	t.Cleanup(func() {
		if c != nil {
			for _, name := range logs {
				if t.Failed() {
					out, _ := os.ReadFile(c.LogFile(name))
					lines := strings.Split(string(out), "\n")
					t.Logf("%s:\n%s", name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
				}
			}
			if err := c.Down(context.Background()); err != nil {
				t.Error(err)
			}
		}
		_ = os.RemoveAll(o.Dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	rest, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(rest)
	if err != nil {
		t.Fatal(err)
	}
	return c, kube
}

// podOf makes a pod that tells its callers their addresses.
func podOf(t *testing.T, kube *kubernetes.Clientset, name string) string {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		NodeSelector: map[string]string{"type": "virtual-kubelet"},
		Containers: []corev1.Container{{Name: "c", Image: "busybox:1.36",
			Command: []string{"sh", "-c", `mkdir -p /tmp/www/cgi-bin && cd /tmp/www/cgi-bin
printf '#!/bin/sh\necho\necho $REMOTE_ADDR\n' > who && chmod +x who && exec httpd -f -p 0.0.0.0:8080 -h /tmp/www`}}},
	}}
	if _, err := kube.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return name
}

// cacheDir outlives the test.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../.dev/netbridge-cache")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// guest makes sure that the guest of a VM pod is in the network as its pod: it has
// its address, MTU and name server, calls and is called with the callers'
// addresses.
func guest(t *testing.T, c *devcluster.Cluster, kube *kubernetes.Clientset, far *pod, block netip.Prefix, neighbour string) {
	t.Helper()
	const name = "vm"
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
			translate.AnnotationVMKernel: devcluster.VMKernelPath, translate.AnnotationVMInitrd: devcluster.VMInitrdPath,
			translate.AnnotationVMCmdline: "console=ttyS0 quiet panic=10",
			translate.AnnotationVMReady:   "agent",
		}},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"type": "virtual-kubelet"}, RuntimeClassName: new("nomad-vm"),
			Containers: []corev1.Container{{
				Name: "c", Image: "scratch",
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("192Mi")}},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{
					HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)},
				}},
			}},
		},
	}
	if _, err := kube.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ip := podIP(t, kube, name)
	if !block.Contains(netip.MustParseAddr(ip)) {
		t.Errorf("the VM's address is %s, the client's block %s", ip, block)
	}
	in := func(script string) string {
		t.Helper()
		return kubectl(t, c, "exec", name, "--", "sh", "-c", script)
	}
	if out := in("ip -4 -o addr show scope global"); !strings.Contains(out, " "+ip+"/") {
		t.Errorf("addresses in the guest: %s", out)
	}
	if mine, others := in("cat /sys/class/net/eth0/mtu"), kubectl(t, c, "exec", "first", "--", "cat", "/sys/class/net/eth0/mtu"); mine != others {
		t.Errorf("the guest's MTU is %s, other pods' %s", mine, others)
	}
	if out := in("nslookup db.service.consul"); !strings.Contains(out, dnsAddress) || !strings.Contains(out, "192.0.2.77") {
		t.Errorf("names in the guest: %s", out)
	}
	in(`mkdir -p /www/cgi-bin && printf '#!/bin/sh\necho\necho $REMOTE_ADDR\n' >/www` + who + ` && chmod +x /www` + who)
	if seen := whoami(t, far, ip); seen != far.ip {
		t.Errorf("the cluster's pod %s is seen by the guest as %s", far.ip, seen)
	}
	if seen := kubectl(t, c, "exec", "first", "--", "sh", "-c", `printf 'GET `+who+` HTTP/1.0\r\n\r\n' | nc `+ip+" 8080"); !strings.HasSuffix(seen, neighbour) {
		t.Errorf("the pod at %s is seen by the guest as %s", neighbour, seen)
	}
	if seen := heard(t, far, func(port string) { in("echo hello | nc " + far.ip + " " + port) }); seen != ip {
		t.Errorf("the cluster's pod is called by %s, not the guest at %s", seen, ip)
	}
	t.Logf("the guest at %s is in the network", ip)
}

// forwards makes sure that a port-forward goes to the pod's own address, and no
// longer at the pace of Nomad's exec API, which is 6 MB a second.
func forwards(t *testing.T, c *devcluster.Cluster, name string) {
	t.Helper()
	const size = 64 << 20
	kubectl(t, c, "exec", name, "--", "dd", "if=/dev/zero", "of=/tmp/www/data", "bs=1M", fmt.Sprintf("count=%d", size>>20))
	cmd := exec.CommandContext(t.Context(), "kubectl", "--kubeconfig", c.KubeconfigFile(), "port-forward", "--address=127.0.0.1", name, ":8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}()
	var port int
	if _, err := fmt.Fscanf(out, "Forwarding from 127.0.0.1:%d -> 8080\n", &port); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
	}
	seen := strings.TrimSpace(get(dial, "http://pod"+who))
	if ip, err := netip.ParseAddr(seen); err != nil || ip.IsLoopback() {
		t.Errorf("a forwarded connection comes to the pod from %q", seen)
	}
	began := time.Now()
	if got := len(get(dial, "http://pod/data")); got != size {
		t.Errorf("%d bytes of %d came", got, size)
	}
	rate := float64(size) / 1e6 / time.Since(began).Seconds()
	t.Logf("port-forward carries %.0f MB/s", rate)
	if rate < 10 {
		t.Errorf("port-forward carries only %.0f MB/s", rate)
	}
}

func podNow(t *testing.T, kube *kubernetes.Clientset, name string) *corev1.Pod {
	t.Helper()
	p, err := kube.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// podIP waits until the pod is ready.
func podIP(t *testing.T, kube *kubernetes.Clientset, name string) (ip string) {
	t.Helper()
	eventually(t, "ready pod "+name, time.Minute, func() bool {
		p := podNow(t, kube, name)
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				ip = p.Status.PodIP
			}
		}
		return ip != ""
	})
	return ip
}

// who is what a pod of podOf answers with: its caller.
const who = "/cgi-bin/who"

// whoami is what the pod at ip tells from about itself.
func whoami(t *testing.T, from *pod, ip string) (seen string) {
	t.Helper()
	eventually(t, "answer of "+ip, 20*time.Second, func() bool {
		seen = strings.TrimSpace(get(from.Dial, "http://"+net.JoinHostPort(ip, "8080")+who))
		return net.ParseIP(seen) != nil
	})
	return seen
}

// heard is whom a server at the pod is called by while call runs.
func heard(t *testing.T, at *pod, call func(port string)) string {
	t.Helper()
	var l net.Listener
	at.Must(func() (err error) {
		l, err = net.Listen("tcp4", at.ip+":0")
		return err
	})
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			seen <- err.Error()
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_ = c.Close()
		seen <- host
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	call(port)
	select {
	case s := <-seen:
		return s
	case <-time.After(10 * time.Second):
		return "nobody"
	}
}

func kubectl(t *testing.T, c *devcluster.Cluster, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", c.KubeconfigFile()}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
