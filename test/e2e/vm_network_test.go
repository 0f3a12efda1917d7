package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// tapClass is the runtime whose guests have their pods' addresses.
const tapClass = "nomad-vm-tap"

// allowTap adds the row to a virtual node's driver table.
func allowTap(n *config.VirtualNode) {
	rows := map[string]translate.Runtime{tapClass: {Driver: "qemu", Config: map[string]any{translate.RowNetwork: translate.VMNetworkTap}}}
	for name, row := range n.Runtimes {
		rows[name] = row
	}
	n.Runtimes = rows
}

// withTap allows what that needs of a client (deploy/nomad/client.hcl).
func withTap(client string) string {
	return strings.Replace(client, `"mknod", `, `"mknod", "net_admin", `, 1)
}

func tapRuntime(t *testing.T) {
	t.Helper()
	_, err := kube.NodeV1().RuntimeClasses().Create(t.Context(), &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: tapClass}, Handler: tapClass}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// whoPort serves whoami, in guests and containers; no pod's spec lists it.
const whoPort = 9090

// whoami tells callers their addresses.
const whoami = `mkdir -p /tmp/who/cgi-bin && cd /tmp/who && printf '#!/bin/sh\necho\necho $REMOTE_ADDR\n' >cgi-bin/who && chmod +x cgi-bin/who && httpd -p 0.0.0.0:9090 -h /tmp/who`

// callWho is a script that asks it. busybox's wget, built static, looks names up
// by libraries that are not there.
func callWho(host string) string {
	return fmt.Sprintf(`printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | nc -w 5 %s %d | tail -n 1`, host, whoPort)
}

// The guest of a VM pod with a tap is the pod in the network: its address, all its
// ports, callers' addresses, its name servers, probes and port-forward, through a
// crash, a reboot and the companion's end.
func TestVirtualMachineOwnsAddress(t *testing.T) {
	t.Parallel()
	tapRuntime(t)
	ns := namespace(t, kube)
	resolver, asked := nameServer(t)
	peer := create(t, kube, ns, pod("peer", whoami+" && exec sleep 3600"))
	start := time.Now()
	p := create(t, kube, ns, vmPod("vm", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new(tapClass)
		p.Spec.DNSPolicy = corev1.DNSNone
		c := &p.Spec.Containers[0]
		c.Ports = nil
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}}}
		c.LivenessProbe = &corev1.Probe{PeriodSeconds: 2, TimeoutSeconds: 5, FailureThreshold: 30, ProbeHandler: corev1.ProbeHandler{
			TCPSocket: &corev1.TCPSocketAction{Host: "127.0.0.1", Port: intstr.FromInt32(8080)}}}
		p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{resolver}, Searches: []string{"one.example", "two.example"}}
	}))
	t.Cleanup(func() {
		if t.Failed() {
			data, _ := kube.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(context.Background())
			t.Logf("console: %q", data[max(0, len(data)-3000):])
		}
	})
	peer = await(t, kube, peer, 60*time.Second, "ready", ready)
	p = await(t, kube, p, 120*time.Second, "ready", ready)
	t.Logf("ready, by HTTP in the guest, after %.1f s", time.Since(start).Seconds())
	ip := p.Status.PodIP

	in := func(script string) string {
		t.Helper()
		out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", script)
		if code != 0 {
			t.Errorf("%s: code %d, %s%s", script, code, out, errOut)
		}
		return out
	}
	same := func(what string, is, want string) {
		t.Helper()
		if strings.TrimSpace(is) != want {
			t.Errorf("%s: %q, want %q", what, is, want)
		}
	}
	agent := func() error {
		if _, errOut, code := execIn(t, p, "c", nil, "true"); code != 0 {
			return errors.New(errOut)
		}
		return nil
	}
	inPeer := func(script string) string {
		t.Helper()
		out, errOut, _ := execIn(t, peer, "c", nil, "sh", "-c", script)
		return out + errOut
	}
	eventually(t, 30*time.Second, "the agent", agent)
	same("addresses in the guest", in("ip -4 -o addr show scope global | awk '{sub(\"/.*\", \"\", $4); print $4}'"), ip)
	same("name servers", in("cat /etc/resolv.conf"), "search one.example two.example\nnameserver "+resolver)
	in(whoami)
	same("the other pod calls", inPeer(callWho(ip)), peer.Status.PodIP)
	same("the guest calls", in(callWho(peer.Status.PodIP)), ip)
	if out := in("nslookup a.one.example"); !strings.Contains(out, "192.0.2.7") || !slices.Contains(asked(), ip) {
		t.Errorf("the pod's name server says %q, and was asked by %q", out, asked())
	}
	ws, old := dialers(t, p)
	for name, url := range map[string]string{"websocket": forwardBy(t, ws, 8080), "old": forwardBy(t, old, 8080)} {
		body, err := page(url)
		if !strings.Contains(body, "Hello from a VM pod") {
			t.Errorf("port-forward (%s): %q %v", name, body, err)
		}
	}

	// The guest crashes: the VM starts again, with the same address.
	before := status(p, "c").RestartCount
	_, _, _ = execIn(t, p, "c", nil, "sh", "-c", "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
	p = await(t, kube, p, 90*time.Second, "started again, and ready", func(p *corev1.Pod) bool {
		return ready(p) && status(p, "c").RestartCount == before+1 && status(p, "c").State.Running != nil
	})
	same("address after a crash", p.Status.PodIP, ip)
	eventually(t, 30*time.Second, "the agent", agent)
	same("address in the guest after a crash", in("ip -4 -o addr show scope global | awk '{sub(\"/.*\", \"\", $4); print $4}'"), ip)
	in(whoami)
	same("the other pod calls after a crash", inPeer(callWho(ip)), peer.Status.PodIP)

	// The companion is killed: the guest does not notice, and what comes next finds
	// all that was made.
	companion, err := companionOf(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(companion, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	same("the other pod calls without a companion", inPeer(callWho(ip)), peer.Status.PodIP)
	eventually(t, 60*time.Second, "another companion", func() error {
		if again, err := companionOf(p); err != nil || again == companion {
			return fmt.Errorf("not there yet: %v", err)
		}
		return agent()
	})
	// A reboot in the guest asks it for the address.
	was := strings.Count(logs(t, kube, p, &corev1.PodLogOptions{}), "demo-vm is up")
	_, _, _ = execIn(t, p, "c", nil, "sh", "-c", "(sleep 1; reboot) >/dev/null 2>&1 &")
	eventually(t, 90*time.Second, "the guest is up again, with its address", func() error {
		out := logs(t, kube, p, &corev1.PodLogOptions{})
		if n := strings.Count(out, "demo-vm is up"); n != was+1 || !strings.Contains(out[strings.LastIndex(out, "demo-vm is up"):], "address "+ip+"/") {
			return fmt.Errorf("up %d times: %q", n, out[max(0, len(out)-300):])
		}
		return nil
	})
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	if n := status(p, "c").RestartCount; n != before+1 {
		t.Errorf("%d restarts, want %d", n, before+1)
	}
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 60*time.Second)
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
	eventually(t, 20*time.Second, "nothing left of the pod's network", func() error {
		for _, list := range []string{"iptables-save", "ip -4 route show table all", "ip rule show", "nft list tables bridge", "ip link show"} {
			words := strings.Fields(list)
			out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
			if err != nil || strings.Contains(string(out), ip+"/") || strings.Contains(string(out), translate.VMTapDevice) || strings.Contains(string(out), "nomad-kubelet-vm") {
				return fmt.Errorf("%s: %v\n%s", list, err, out)
			}
		}
		return nil
	})
}

// A gRPC probe asks a server in the guest at the pod's address, and a port of the
// client leads there. The server is the test's own, behind a relay in the guest: its
// word makes the pod ready, and unready.
func TestVirtualMachineOwnsAddressProbedByGRPC(t *testing.T) {
	t.Parallel()
	tapRuntime(t)
	ns := namespace(t, kube)
	const port, hostPort = 9000, 8191
	at, health := healthServer(t)
	host, far, _ := net.SplitHostPort(at)
	p := create(t, kube, ns, vmPod("vm", func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new(tapClass)
		c := &p.Spec.Containers[0]
		c.Command = []string{"nc", "-ll", "-p", strconv.Itoa(port), "-e", "nc", host, far}
		c.Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: hostPort}}
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{
			GRPC: &corev1.GRPCAction{Port: port, Service: new("shop")}}}
	}))
	p = await(t, kube, p, 120*time.Second, "up, and not ready", func(p *corev1.Pod) bool {
		return status(p, "c").State.Running != nil && !ready(p)
	})
	if message := eventOf(t, kube, p, "Unhealthy"); !strings.Contains(message, "Readiness probe failed") {
		t.Errorf("event: %s", message)
	}
	health.SetServingStatus("shop", healthpb.HealthCheckResponse_SERVING)
	p = await(t, kube, p, 120*time.Second, "ready", ready)
	if body, err := page(fmt.Sprintf("http://%s:%d/", p.Status.HostIP, hostPort)); !strings.Contains(body, "Hello from a VM pod") {
		t.Errorf("the client's port: %q %v", body, err)
	}
	health.SetServingStatus("shop", healthpb.HealthCheckResponse_NOT_SERVING)
	p = await(t, kube, p, 30*time.Second, "unready", func(p *corev1.Pod) bool { return !ready(p) })
	eventually(t, 20*time.Second, "the server's word in an event", func() error {
		if out := kubectl(t, "-n", ns, "events", "--for=pod/vm"); !strings.Contains(out, `service unhealthy (responded with "NOT_SERVING")`) {
			return errors.New(out)
		}
		return nil
	})
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 60*time.Second)
	if body, err := page(fmt.Sprintf("http://%s:%d/", p.Status.HostIP, hostPort)); err == nil {
		t.Errorf("the client's port outlives the pod: %q", body)
	}
}

// healthServer answers gRPC's health checks where pods reach it. It knows no service
// yet.
func healthServer(t *testing.T) (address string, h *health.Server) {
	t.Helper()
	host, _, err := net.SplitHostPort(cluster.KubeletAddress())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s, h := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }() // ends with the test
	t.Cleanup(s.Stop)
	return l.Addr().String(), h
}

// A pod may ask for less than its runtime gives, and not for more.
func TestVirtualMachineNetworkChosen(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, vmPod("more", func(p *corev1.Pod) { p.Annotations[translate.AnnotationVMNetwork] = translate.VMNetworkTap }))
	p = await(t, kube, p, 20*time.Second, "failed", phase(corev1.PodFailed))
	if !strings.Contains(p.Status.Message, "config.network: tap") {
		t.Errorf("message: %s", p.Status.Message)
	}
	tapRuntime(t)
	p = create(t, kube, ns, vmPod("less", func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new(tapClass)
		p.Annotations[translate.AnnotationVMNetwork] = translate.VMNetworkUser
	}))
	p = await(t, kube, p, 120*time.Second, "ready", ready)
	if out, _, _ := execIn(t, p, "c", nil, "ip", "-4", "-o", "addr", "show", "scope", "global"); !strings.Contains(out, "10.0.2.15/") {
		t.Errorf("addresses in the guest: %s", out)
	}
	if body, err := page("http://" + p.Status.PodIP + ":8080/"); !strings.Contains(body, "Hello from a VM pod") {
		t.Errorf("the forwarded port: %q %v", body, err)
	}
}

func page(url string) (string, error) {
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// companionOf is the process, on this machine, of the companion of a VM pod with a
// tap.
func companionOf(p *corev1.Pod) (pid int, err error) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range processes {
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // it may have ended
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if strings.HasPrefix(string(line), "/companion\x00vm-tap\x00") && strings.Contains(string(environ), string(p.UID)) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, errors.New("the pod has no companion")
}

// nameServer answers on the pods' bridge, as any machine's would that pods reach,
// and tells who has asked.
func nameServer(t *testing.T) (address string, asked func() []string) {
	t.Helper()
	address, _, err := net.SplitHostPort(cluster.KubeletAddress())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp4", net.JoinHostPort(address, "53"))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var who []string
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
		mu.Lock()
		who = append(who, host)
		mu.Unlock()
		r := new(dns.Msg).SetReply(m)
		if q := m.Question[0]; q.Name == "a.one.example." && q.Qtype == dns.TypeA {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 7)}}
		}
		_ = w.WriteMsg(r) // who asks asks again
	})}
	go func() { _ = s.ActivateAndServe() }() // ends with the test
	t.Cleanup(func() { conn.Close() })
	return address, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(who)
	}
}
