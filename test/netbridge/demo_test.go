package netbridge

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

// What make demo NET=1 starts: a node with a kubelet and containerd, kube-proxy on
// both sides, CoreDNS. The example runs as it stands, by the names of Services, and
// nothing is left of it in the machine's network.
func TestDemo(t *testing.T) {
	needs(t)
	netlab.Root(t, "nomad", "dockerd", "containerd", "kube-apiserver", "kubelet", "nomad-kubelet", "kubectl", "kube-proxy", "coredns", "consul", "netbridge", "unshare")
	if os.Getenv(machineEnv) == "" {
		inOwnNamespace(t)
		return
	}
	here := netlab.Here(t, "machine")
	here.Run("ip link set lo up")
	c, kube := demo(t)
	kubectl(t, c, "apply", "-f", "../../examples/pod-network")
	inCluster, onNomad := ready(t, kube, "in-cluster"), ready(t, kube, "on-nomad")
	if inCluster.Spec.NodeName != devcluster.OnPremNode || onNomad.Spec.NodeName != devcluster.VirtualNode {
		t.Errorf("the pods are on %s and %s", inCluster.Spec.NodeName, onNomad.Spec.NodeName)
	}
	calls := func(from, to *corev1.Pod, service string) {
		t.Helper()
		want := fmt.Sprintf("this is %s at %s, called by %s", to.Name, to.Status.PodIP, from.Status.PodIP)
		// Of two pods either may answer.
		var out string
		defer func() {
			if t.Failed() {
				t.Logf("the last answer was %q", out)
			}
		}()
		eventually(t, "call from "+from.Name+" to the Service "+service, 30*time.Second, func() bool {
			out = try(c, "exec", from.Name, "--", "sh", "/scripts/call", service)
			return out == want
		})
	}
	calls(inCluster, onNomad, "on-nomad")
	calls(onNomad, inCluster, "in-cluster")
	kubeProxyJob(t, c, kube)
	calls(onNomad, onNomad2(t, c, kube, onNomad), "on-nomad-2") // a Service that only the job can know
	calls(onNomad, inCluster, "in-cluster")
	// (busybox's nslookup does not use the search list.)
	if out := try(c, "exec", onNomad.Name, "--", "nslookup", "kubernetes.default.svc.cluster.local"); !strings.Contains(out, "Address: 10.96.0.1") {
		t.Errorf("nslookup in a pod on Nomad: %s", out)
	}
	endpoints(t, c, kube)
	kill := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := c.Kill(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Their pods go on without the agents, and the second name server answers.
	kill(devcluster.Netbridge, devcluster.OnPremNetbridge)
	calls(onNomad, inCluster, "in-cluster")
	// And without Consul and nomad-kubelet.
	kill(devcluster.NomadKubelet, devcluster.Consul)
	calls(inCluster, onNomad, "on-nomad")
	for _, name := range []string{devcluster.Consul, devcluster.Netbridge, devcluster.OnPremNetbridge, devcluster.NomadKubelet} {
		if err := c.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	calls(onNomad, inCluster, "in-cluster")
	if err := c.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	for what, line := range map[string]string{
		"devices": "ip -br link show", "routes": "ip route show", "tables": "nft list tables", "namespaces": "ip netns list", "forwarding": "iptables -S FORWARD",
	} {
		out := here.Run(line)
		for _, left := range []string{"nb0", "nbr0", "nkwire", "nknode", "nkdev", "netbridge", "kube-proxy", "10.77.", "10.244."} {
			if strings.Contains(out, left) {
				t.Errorf("of %s there is left:\n%s", what, out)
			}
		}
	}
}

// demo is the hybrid with a pod network, where Nomad asks everybody for a token.
func demo(t *testing.T) (*devcluster.Cluster, *kubernetes.Clientset) {
	t.Helper()
	return cluster(t, devcluster.Options{
		PodNetwork: true, ACL: true,
		// deploy/nomad/client.hcl tells of it; kube-proxy's job needs it.
		ClientHCL: strings.Replace(deploynomad.Client, `"mknod", `, `"mknod", "net_admin", `, 1),
	}, devcluster.NomadKubelet, devcluster.Netbridge, devcluster.OnPremNetbridge, devcluster.Kubelet, devcluster.CoreDNS)
}

// try is kubectl's answer, whatever it is.
func try(c *devcluster.Cluster, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", c.KubeconfigFile()}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// ready waits for the one pod of a Deployment.
func ready(t *testing.T, kube *kubernetes.Clientset, app string) (pod *corev1.Pod) {
	t.Helper()
	eventually(t, "ready pod of "+app, 90*time.Second, func() bool {
		list, err := kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil || len(list.Items) != 1 {
			return false
		}
		pod = &list.Items[0]
		for _, cond := range pod.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				return true
			}
		}
		return false
	})
	return pod
}

// onNomad2 is another pod like the one on Nomad, with a Service of its own.
func onNomad2(t *testing.T, c *devcluster.Cluster, kube *kubernetes.Clientset, like *corev1.Pod) *corev1.Pod {
	t.Helper()
	const name = "on-nomad-2"
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{
		NodeSelector: like.Spec.NodeSelector, Tolerations: like.Spec.Tolerations, Volumes: like.Spec.Volumes[:1], Containers: like.Spec.Containers,
	}}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].VolumeMounts = p.Spec.Containers[i].VolumeMounts[:1]
	}
	if _, err := kube.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "expose", "pod", name, "--port=80", "--target-port=8080")
	return ready(t, kube, name)
}

// endpoints measures how long after Nomad's running a pod is a ready endpoint of its
// Service, as a watcher sees both.
func endpoints(t *testing.T, c *devcluster.Cluster, kube *kubernetes.Clientset) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	slices, err := kube.DiscoveryV1().EndpointSlices("default").Watch(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=on-nomad"})
	if err != nil {
		t.Fatal(err)
	}
	defer slices.Stop()
	began := time.Now()
	kubectl(t, c, "scale", "deployment/on-nomad", "--replicas=2")
	for e := range slices.ResultChan() {
		slice, ok := e.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		n := 0
		for _, ep := range slice.Endpoints {
			if ep.Conditions.Ready != nil && *ep.Conditions.Ready {
				if _, err := netip.ParseAddr(ep.Addresses[0]); err == nil {
					n++
				}
			}
		}
		if n == 2 {
			break
		}
	}
	if ctx.Err() != nil {
		t.Fatal("no second endpoint within a minute")
	}
	seen := time.Now()
	pods, err := kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=on-nomad"})
	if err != nil {
		t.Fatal(err)
	}
	var running time.Time
	for _, p := range pods.Items {
		if p.Status.ContainerStatuses[0].State.Running != nil {
			if at := p.Status.ContainerStatuses[0].State.Running.StartedAt.Time; at.After(running) {
				running = at
			}
		}
	}
	t.Logf("a pod more is a ready endpoint %s after the Deployment was scaled, %s after its container ran (to the second)", seen.Sub(began), seen.Sub(running))
	if seen.Sub(running) > 10*time.Second {
		t.Error("that is too long")
	}
}
