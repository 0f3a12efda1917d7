package netbridge

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// services are the cluster's as burst pods see them, by the kube-proxy of their
// Nomad client.
type services struct {
	t    *testing.T
	c    *devcluster.Cluster
	kube *kubernetes.Clientset
	// far is a pod of the cluster's own.
	far *pod
}

// kubeProxy starts the cluster's own Service proxy on the machine, as
// deploy/nomad/kube-proxy.nomad.hcl does.
func kubeProxy(t *testing.T, c *devcluster.Cluster) {
	t.Helper()
	log, err := os.Create(filepath.Join(c.Dir(), "logs", "kube-proxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("kube-proxy", append([]string{"--kubeconfig=" + c.KubeconfigFile(), "--hostname-override=nomad",
		"--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
		// The kernel's table of connections is not this namespace's to size.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
	}, "--proxy-mode=nftables")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			lines := strings.Split(string(out), "\n")
			t.Logf("kube-proxy:\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
		_ = log.Close()
	})
}

// service makes one and returns its ClusterIP.
func (s *services) service(name string, spec corev1.ServiceSpec) string {
	s.t.Helper()
	svc, err := s.kube.CoreV1().Services("default").Create(s.t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

// at points a Service without a selector to a pod that is no object of the API.
func (s *services) at(name string, port corev1.ServicePort, ready bool) {
	s.t.Helper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &port.Name, Port: &port.TargetPort.IntVal, Protocol: &port.Protocol}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{s.far.ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
	api := s.kube.DiscoveryV1().EndpointSlices("default")
	_ = api.Delete(s.t.Context(), slice.Name, metav1.DeleteOptions{}) // it may not be there
	if _, err := api.Create(s.t.Context(), slice, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// from runs a command in a burst pod.
func (s *services) from(pod, script string) string {
	s.t.Helper()
	return kubectl(s.t, s.c, "exec", pod, "--", "sh", "-c", script)
}

// asks is whom a burst pod's request is seen to come from at a Service of pods
// made by podOf.
func (s *services) asks(pod, ip string) string {
	s.t.Helper()
	out := s.from(pod, `printf 'GET `+who+` HTTP/1.0\r\n\r\n' | nc -w 3 `+ip+` 80 2>/dev/null || true`)
	return out[strings.LastIndexByte(out, '\n')+1:]
}

// check needs two burst pods, first and second, by podOf.
func (s *services) check(first, second string) {
	t := s.t
	tcp := func(port, target int) []corev1.ServicePort {
		return []corev1.ServicePort{{Name: "p", Port: int32(port), TargetPort: intstr.FromInt32(int32(target)), Protocol: corev1.ProtocolTCP}}
	}
	for _, name := range []string{"first", "second"} {
		patch := []byte(`{"metadata":{"labels":{"app":"burst"}}}`)
		if _, err := s.kube.CoreV1().Pods("default").Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	// Burst pods behind a Service, called by one of them: both answer, each with the
	// caller's address, and it reaches itself, which takes the client's address.
	burst := s.service("burst", corev1.ServiceSpec{Selector: map[string]string{"app": "burst"}, Ports: tcp(80, 8080)})
	seen := map[string]int{}
	eventually(t, "answer of both pods by their Service", 30*time.Second, func() bool {
		seen[s.asks("first", burst)]++
		return seen[first] > 0 && len(seen) > 1
	})
	delete(seen, "")
	if len(seen) > 2 {
		t.Errorf("a pod is seen as %v by its Service", seen)
	}
	t.Logf("the pod %s is seen as %v by itself and another through their Service", first, seen)

	// One caller, one endpoint.
	sticky := s.service("sticky", corev1.ServiceSpec{Selector: map[string]string{"app": "burst"}, Ports: tcp(80, 8080), SessionAffinity: corev1.ServiceAffinityClientIP})
	answered := func() string {
		return s.from("first", `printf 'GET /name HTTP/1.0\r\n\r\n' | nc -w 3 `+sticky+` 80 2>/dev/null | tail -n 1 || true`)
	}
	for _, name := range []string{"first", "second"} {
		s.from(name, "echo "+name+" > /tmp/www/name")
	}
	eventually(t, "answer of the sticky Service", 30*time.Second, func() bool { return answered() != "" })
	one := answered()
	for range 8 {
		if again := answered(); again != one {
			t.Errorf("with session affinity pod %s and then %s answered", one, again)
		}
	}

	// A pod of the cluster's own behind a Service sees the burst pod itself.
	var l net.Listener
	s.far.Must(func() (err error) { l, err = net.Listen("tcp4", s.far.ip+":0"); return err })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close() // heard listens there
	n, _ := strconv.Atoi(port)
	cluster := s.service("cluster", corev1.ServiceSpec{Ports: tcp(80, n)})
	s.at("cluster", tcp(80, n)[0], true)
	if got := s.heardAt(n, func() { s.from("second", "echo hello | nc -w 3 "+cluster+" 80") }); got != second {
		t.Errorf("the cluster's pod behind a Service is called by %s, not %s", got, second)
	}

	// internalTrafficPolicy Local: the endpoint is on another node, so nobody is there.
	local := corev1.ServiceInternalTrafficPolicyLocal
	here := s.service("here", corev1.ServiceSpec{Selector: map[string]string{"app": "burst"}, Ports: tcp(80, 8080), InternalTrafficPolicy: &local})
	eventually(t, "answer of a pod of this node", 30*time.Second, func() bool { return s.asks("first", here) != "" })
	away := s.service("away", corev1.ServiceSpec{Ports: tcp(80, n), InternalTrafficPolicy: &local})
	s.at("away", tcp(80, n)[0], true)
	eventually(t, "refusal", 30*time.Second, func() bool {
		return s.from("first", "nc -w 3 "+away+" 80 </dev/null 2>/dev/null && echo open || echo refused") == "refused"
	})
	s.udp()
}

// mixed runs the example of a container that calls a VM by the name of its Service,
// from its first answer to that of the VM that comes after it.
func (s *services) mixed(n *names) {
	t := s.t
	n.silent.Store(false)
	apply := func(verb string, args ...string) string {
		return kubectl(t, s.c, append([]string{verb, "-f", "../../examples/vm-mixed"}, args...)...)
	}
	apply("apply")
	ip := kubectl(t, s.c, "get", "service", "legacy", "-o", "jsonpath={.spec.clusterIP}")
	n.service.Store(&ip)
	ready := func() bool {
		return kubectl(t, s.c, "get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}") == "1"
	}
	began := time.Now()
	eventually(t, "answer of a VM by its Service", 2*time.Minute, ready)
	t.Logf("a container has a VM's answer by its Service %s after both were made", time.Since(began).Round(time.Second))
	page := func() string {
		return kubectl(t, s.c, "exec", "deploy/web", "--", "cat", "/tmp/www/index.html")
	}
	if got := page(); !strings.Contains(got, "Hello from a VM pod") {
		t.Errorf("by the Service of a VM came %q", got)
	}
	endpoints := func() string {
		return kubectl(t, s.c, "get", "endpointslices", "-l", "kubernetes.io/service-name=legacy", "-o", "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].targetRef.name}")
	}
	was := endpoints()
	kubectl(t, s.c, "delete", "pod", "-l", "app=legacy", "--wait=false")
	eventually(t, "next VM behind the Service", 2*time.Minute, func() bool { now := endpoints(); return now != "" && !strings.Contains(now, was) })
	// What is served from now on is the next VM's.
	kubectl(t, s.c, "exec", "deploy/web", "--", "sh", "-c", "sleep 4; echo gone > /tmp/www/index.html")
	eventually(t, "answer of the next VM", 30*time.Second, func() bool { return strings.Contains(page(), "Hello from a VM pod") })
	apply("delete", "--wait=false", "--grace-period=1")
	eventually(t, "end of the example", time.Minute, func() bool {
		return kubectl(t, s.c, "get", "pods", "-l", "app in (legacy, web)", "-o", "name") == ""
	})
}

// heardAt is who calls a port of the cluster's pod.
func (s *services) heardAt(port int, call func()) string {
	s.t.Helper()
	got := "nobody"
	eventually(s.t, "call by a Service", 30*time.Second, func() bool {
		got = heardOn(s.t, s.far, port, call)
		return got != "nobody"
	})
	return got
}

func heardOn(t *testing.T, at *pod, port int, call func()) string {
	t.Helper()
	var l net.Listener
	at.Must(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", at.ip, port))
		return err
	})
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_ = c.Close()
		seen <- host
	}()
	call()
	select {
	case who := <-seen:
		return who
	case <-time.After(time.Second):
		return "nobody"
	}
}

// udp has one flow, always from the same port, go to a Service that has an
// endpoint, none, and another one: no entry of the kernel's holds it at the former.
// (While there is none, kube-proxy lets flows go on: pkg/proxy/conntrack, cleanup.go.)
func (s *services) udp() {
	t := s.t
	before, after := s.hears(), s.hears()
	p := corev1.ServicePort{Name: "p", Port: 53, TargetPort: intstr.FromInt32(before.port), Protocol: corev1.ProtocolUDP}
	ip := s.service("udp", corev1.ServiceSpec{Ports: []corev1.ServicePort{p}})
	s.at("udp", p, true)
	// syslogd keeps one socket, while endpoints come and go.
	s.from("first", `syslogd -R `+ip+`:53; (while :; do logger tick; sleep 0.2; done) </dev/null >/dev/null 2>&1 &`)
	if got := before.within(30 * time.Second); !strings.HasSuffix(got, " root: tick") {
		t.Fatalf("by a UDP Service came %q", got)
	}
	s.at("udp", p, false)
	eventually(t, "refusal of new flows", 30*time.Second, func() bool {
		return s.from("second", "nslookup -timeout=1 -retry=0 nowhere.example "+ip+" >/dev/null 2>&1; echo $?") != "0"
	})
	p.TargetPort = intstr.FromInt32(after.port)
	s.at("udp", p, true)
	began := time.Now()
	if after.within(10*time.Second) == "" {
		t.Error("a UDP flow does not follow its Service to another endpoint")
	}
	t.Logf("a UDP flow is at its Service's new endpoint after %s", time.Since(began).Round(time.Millisecond))
	before.drain()
	if late := before.within(2 * time.Second); late != "" {
		t.Errorf("the former endpoint still gets %q", late)
	}
}

// hearing is a UDP port of the cluster's pod.
type hearing struct {
	port int32
	got  chan string
}

func (s *services) hears() hearing {
	s.t.Helper()
	var conn net.PacketConn
	s.far.Must(func() (err error) { conn, err = net.ListenPacket("udp4", s.far.ip+":0"); return err })
	s.t.Cleanup(func() { _ = conn.Close() })
	h := hearing{int32(conn.LocalAddr().(*net.UDPAddr).Port), make(chan string, 1000)}
	go func() {
		buf := make([]byte, 1000)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			h.got <- strings.TrimSpace(string(buf[:n]))
		}
	}()
	return h
}

// within is what comes in that time, or nothing.
func (h hearing) within(limit time.Duration) string {
	select {
	case text := <-h.got:
		return text
	case <-time.After(limit):
		return ""
	}
}

func (h hearing) drain() {
	for len(h.got) > 0 {
		<-h.got
	}
}
