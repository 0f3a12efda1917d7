package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
)

// portBase begins the control plane's ports, in a namespace that nobody else is in.
const portBase = 23000

// services are ClusterIPs that all lead to one pod.
type services struct {
	b      *testing.B
	kube   *kubernetes.Clientset
	client pod
	server pod
	port   int
	ips    []netip.Addr
}

// BenchmarkServices connects from a pod to Services by kube-proxy's nftables, and
// to the pod behind them.
func BenchmarkServices(b *testing.B) {
	has(b, "kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "kube-proxy", "nft")
	bed := newBed(b)
	// kube-proxy works on the machine that this is.
	here := &host{NS: bed.ns, bed: bed, dir: b.TempDir()}
	here.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	s := &services{b: b, kube: controlPlane(b, here)}
	near, far := netip.MustParsePrefix("10.77.1.0/25"), netip.MustParsePrefix("10.77.2.0/25")
	here.bridge("near0", near, plain)
	here.bridge("far0", far, plain)
	s.client, s.server = here.pod("near0", near, plain), here.pod("far0", far, plain)
	s.listen()
	var p50 []time.Duration
	for _, n := range []int{10, 1000, 10000} {
		s.grow(n)
		direct, service := s.connect(func() (netip.Addr, int) { return s.server.ip, s.port }), s.connect(func() (netip.Addr, int) { return s.ips[rand.N(len(s.ips))], 80 })
		report.Add(fmt.Sprintf("%d Services: a connection to a ClusterIP", n), us(service), "to the pod: "+us(direct))
		p50 = append(p50, figures.Quantile(service, 0.5))
	}
	// Noise apart: iptables' chains would make it many times as much.
	flat := p50[2] <= p50[0]*3/2
	report.Goal(b, "10,000 Services beside 10, p50", fmt.Sprintf("%.2f times", float64(p50[2])/float64(p50[0])), "", "flat: at most 1.5 times", flat)
}

// controlPlane is Kubernetes alone, with kube-proxy on this machine.
func controlPlane(b *testing.B, here *host) *kubernetes.Clientset {
	b.Helper()
	dir, err := os.MkdirTemp("", "nkbench")
	must(b, err)
	stop := func() {
		if c, err := devcluster.Open(dir); err == nil {
			err = c.Down(context.Background())
			if err != nil {
				fmt.Fprintln(os.Stderr, "stop the control plane:", err)
			}
		}
		_ = os.RemoveAll(dir)
	}
	b.Cleanup(stop)
	c, err := devcluster.Up(b.Context(), devcluster.Options{Dir: dir, BinDir: bin, PortBase: portBase, NoDocker: true, NoNomad: true, NoNomadKubelet: true, Out: os.Stdout})
	must(b, err)
	cfg, err := c.RESTConfig()
	must(b, err)
	cfg.QPS, cfg.Burst = 5000, 5000
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	kube, err := kubernetes.NewForConfig(cfg)
	must(b, err)
	log, err := os.Create(filepath.Join(here.dir, "kube-proxy.log"))
	must(b, err)
	cmd := exec.Command(filepath.Join(bin, "kube-proxy"), "--kubeconfig="+c.KubeconfigFile(), "--hostname-override=bench", "--proxy-mode=nftables",
		fmt.Sprintf("--healthz-bind-address=127.0.0.1:%d", portBase+18), fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", portBase+17),
		// The kernel's table of connections is not this namespace's to size.
		"--conntrack-max-per-core=0", "--conntrack-min=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(b, here.Start(cmd))
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if out, err := os.ReadFile(log.Name()); err == nil && b.Failed() {
			b.Logf("kube-proxy:\n%s", out[max(0, len(out)-4000):])
		}
		_ = log.Close()
	})
	return kube
}

// listen accepts connections at the pod and closes them.
func (s *services) listen() {
	var fd int
	s.server.Must(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: s.server.ip.As4()}); err != nil {
			return err
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		s.port = name.(*unix.SockaddrInet4).Port
		return unix.Listen(fd, 4096)
	})
	s.b.Cleanup(func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR); _ = unix.Close(fd) })
	go func() {
		for {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			_ = unix.Close(c)
		}
	}()
}

// grow makes Services until there are n, and waits for kube-proxy to have the last.
func (s *services) grow(n int) {
	began := time.Now()
	ips := make([]netip.Addr, n)
	copy(ips, s.ips)
	var g errgroup.Group
	g.SetLimit(64)
	for i := len(s.ips); i < n; i++ {
		g.Go(func() (err error) {
			ips[i], err = s.make(i)
			return err
		})
	}
	must(s.b, g.Wait())
	s.ips = ips
	fmt.Printf("%d Services are made after %s\n", n, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	for _, ip := range []netip.Addr{ips[0], ips[n/2], ips[n-1]} {
		await(s.b, fmt.Sprintf("way to %s, one of %d Services", ip, n), 5*time.Minute, func() bool {
			_, err := s.dial(ip, 80)
			return err == nil
		})
	}
	fmt.Printf("kube-proxy has the first, the last and one between them %s later\n", time.Since(began).Round(time.Millisecond))
}

func (s *services) make(i int) (netip.Addr, error) {
	name, proto, port, ready := fmt.Sprint("s", i), corev1.ProtocolTCP, int32(s.port), true
	ctx := s.b.Context()
	svc, err := s.kube.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "p", Port: 80, TargetPort: intstr.FromInt32(port), Protocol: proto}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	_, err = s.kube.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("p"), Port: &port, Protocol: &proto}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{s.server.ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(svc.Spec.ClusterIP)
}

// connect is what it takes until a connection is there, each to what to says.
func (s *services) connect(to func() (netip.Addr, int)) []time.Duration {
	out := make([]time.Duration, *connects)
	for i := range out {
		took, err := s.dial(to())
		for errors.Is(err, unix.EINTR) { // Go preempts by signals
			took, err = s.dial(to())
		}
		must(s.b, err)
		out[i] = took
	}
	return out
}

// dial connects by a socket that blocks; it is closed by a reset, so that no ports
// are kept.
func (s *services) dial(ip netip.Addr, port int) (took time.Duration, err error) {
	var fd int
	err = s.client.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	// How long connect(2) waits, too (socket(7)).
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := time.Now()
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: ip.As4()})
	return time.Since(began), err
}
