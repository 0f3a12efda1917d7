package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// scrape asks the kubelet API of a cluster's virtual node, as an administrator. The
// API server passes nothing on to loopback.
func scrape(t *testing.T, c *devcluster.Cluster, path string) (string, error) {
	t.Helper()
	conf, err := c.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	conf.Insecure, conf.CAData, conf.CAFile = true, nil, ""
	client, err := rest.HTTPClientFor(conf)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://%s/%s", c.KubeletAddress(), path), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, out)
	}
	return string(out), err
}

// value is that of the metric's series which has all the labels, such as pod="p".
func value(t *testing.T, metrics, name string, labels ...string) (v float64, ok bool) {
	t.Helper()
	for _, line := range strings.Split(metrics, "\n") {
		m := regexp.MustCompile(`^` + name + `(\{.*\})? (\S+)`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		has := true
		for _, l := range labels {
			has = has && strings.Contains(m[1], l)
		}
		if !has {
			continue
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return v, true
	}
	return 0, false
}

// summaryOf waits for the pod in the node's summary, with all of its containers.
func summaryOf(t *testing.T, c *devcluster.Cluster, p *corev1.Pod, limit time.Duration) (node statsapi.NodeStats, pod statsapi.PodStats) {
	t.Helper()
	eventually(t, limit, "statistics of "+p.Name, func() error {
		out, err := scrape(t, c, "stats/summary")
		if err != nil {
			return err
		}
		var s statsapi.Summary
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, found := range s.Pods {
			if found.PodRef.UID == string(p.UID) && len(found.Containers) == len(p.Spec.Containers) {
				node, pod = s.Node, found
				return nil
			}
		}
		return fmt.Errorf("not among %d pods", len(s.Pods))
	})
	return node, pod
}

// loadScript works for about a third of a core's time while /tmp/load is there.
const loadScript = `while :; do if [ -f /tmp/load ]; then i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; sleep 0.01; else sleep 1; fi; done`

// kernelScript tells what the kernel counts of a container: nanoseconds of CPU time,
// and its working set in bytes, on cgroup v1 or v2.
const kernelScript = `cd /sys/fs/cgroup; if [ -f cpu.stat ]; then
	while read k v; do if [ $k = usage_usec ]; then echo ${v}000; fi; done < cpu.stat; m=memory.current; s=memory.stat; f=inactive_file
else cat cpuacct/cpuacct.usage; m=memory/memory.usage_in_bytes; s=memory/memory.stat; f=total_inactive_file; fi
while read k v; do if [ $k = $f ]; then echo $(($(cat $m) - v)); fi; done < $s`

func kernelSays(t *testing.T, p *corev1.Pod) (cpu, memory float64) {
	t.Helper()
	out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", kernelScript)
	if _, err := fmt.Sscan(out, &cpu, &memory); err != nil || code != 0 {
		t.Fatalf("%q %q %d: %v", out, errOut, code, err)
	}
	return cpu / 1e9, memory
}

// With the docker proxy what a container uses is told as the kernel counts it.
func TestUsageIsExact(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := pod("busy", "touch /tmp/load; "+loadScript, restart(corev1.RestartPolicyAlways))
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
	p.Spec.Containers[0].ReadinessProbe = everySecond(command("true"))
	p.Spec.Containers[0].StartupProbe = everySecond(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}})
	p.Spec.Containers[0].StartupProbe.FailureThreshold = 60
	p.Spec.Containers = append(p.Spec.Containers, container("web", "busybox httpd -f -p 8080 -h /tmp"))
	p = await(t, kube, create(t, kube, ns, p), 90*time.Second, "ready", ready)
	labels := []string{`container="c"`, `pod="busy"`, `namespace="` + ns + `"`}
	var last float64
	for range 2 {
		before, _ := kernelSays(t, p)
		var counted float64
		// What was gathered for others just now may be told once more.
		eventually(t, 30*time.Second, "a new sample", func() error {
			out, err := scrape(t, cluster, "metrics/resource")
			if err != nil {
				return err
			}
			var ok bool
			if counted, ok = value(t, out, "container_cpu_usage_seconds_total", labels...); !ok || counted < before {
				return fmt.Errorf("%g s, the kernel before %g", counted, before)
			}
			set, ok := value(t, out, "container_memory_working_set_bytes", labels...)
			if _, kernel := kernelSays(t, p); !ok || set < kernel/2 || set > kernel*2+4<<20 {
				return fmt.Errorf("a working set of %g bytes, the kernel %g", set, kernel)
			}
			return nil
		})
		after, _ := kernelSays(t, p)
		if counted > after || counted <= last {
			t.Errorf("%g s after %g, and the kernel from %g to %g", counted, last, before, after)
		}
		t.Logf("%.3f s, the kernel from %.3f to %.3f", counted, before, after)
		last = counted
	}
	node, stats := summaryOf(t, cluster, p, 30*time.Second)
	if node.CPU == nil || *node.CPU.UsageCoreNanoSeconds == 0 || *node.Memory.WorkingSetBytes < 100<<20 || *node.Fs.CapacityBytes == 0 {
		t.Errorf("node: %+v", node)
	}
	if stats.Network == nil || stats.Network.Name != "eth0" || *stats.CPU.UsageCoreNanoSeconds < uint64(last*1e9) {
		t.Errorf("pod: %+v", stats)
	}
	for path, metrics := range map[string]map[string][]string{
		"metrics/cadvisor": {"container_cpu_usage_seconds_total": labels, "container_network_receive_bytes_total": {`pod="busy"`, `interface="eth0"`}, "machine_cpu_cores": nil},
		"metrics":          {"kubelet_running_pods": nil, "kubelet_running_containers": {`"running"`}, "process_cpu_seconds_total": nil},
	} {
		out, err := scrape(t, cluster, path)
		if err != nil {
			t.Fatal(err)
		}
		for name, labels := range metrics {
			if v, ok := value(t, out, name, labels...); !ok || v <= 0 && !strings.Contains(name, "network") {
				t.Errorf("%s: %s%v is %g", path, name, labels, v)
			}
		}
	}
	// The companion tells of its attempts with its next sign of life.
	eventually(t, 20*time.Second, "counted probes", func() error {
		out, err := scrape(t, cluster, "metrics/probes")
		if err != nil {
			return err
		}
		exec, _ := value(t, out, "prober_probe_total", append(labels, `probe_type="Readiness"`, `result="successful"`)...)
		network, _ := value(t, out, "prober_probe_total", append(labels, `probe_type="Startup"`, `result="successful"`)...)
		times, _ := value(t, out, "prober_probe_duration_seconds_count", append(labels, `probe_type="Startup"`)...)
		if exec < 2 || network != 1 || times != 1 {
			return fmt.Errorf("readiness %g, startup %g, timed %g", exec, network, times)
		}
		return nil
	})
}

// metrics-server makes kubectl top of the virtual node's statistics, and the
// autoscaler scales on them, up and down again.
func TestAutoscaling(t *testing.T) {
	t.Parallel()
	began := time.Now()
	ns := namespace(t, kube)
	vm := create(t, kube, ns, pod("vm", "", func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = ptr.To("nomad-vm")
		p.Spec.Containers = []corev1.Container{{Name: "vm", Image: devcluster.VMImagePath, Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("192Mi")},
		}}}
	}))
	deployLoad(t, ns)
	kubectl(t, "-n", ns, "rollout", "status", "deployment/load", "--timeout=90s")
	if err := cluster.StartMetricsServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("metrics-server tells of the node after %.0f s", time.Since(began).Seconds())
	row := regexp.MustCompile(`(?m)^` + devcluster.VirtualNode + ` +[1-9]\d*m? +\d+% +[1-9]\d*Mi +\d+%`)
	if out := kubectl(t, "top", "nodes"); !row.MatchString(out) {
		t.Errorf("kubectl top nodes:\n%s", out)
	}
	eventually(t, 60*time.Second, "kubectl top pods", func() error {
		out, err := tryKubectl(t, "", "top", "pods", "-n", ns, "--containers", "--no-headers")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		// A VM uses as much as its guest; the other sleeps.
		for _, want := range []string{`(?m)^load-\S+ +c +\d+m +\d+Mi`, `(?m)^vm +vm +[1-9]\d*m +[1-9]\d?Mi`} {
			if !regexp.MustCompile(want).MatchString(out) {
				return fmt.Errorf("no %s in\n%s", want, out)
			}
		}
		return nil
	})
	remove(t, kube, vm, ptr.To(int64(0)))

	autoscale(t, ns)
	list, err := kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=load"})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d pods: %v", len(list.Items), err)
	}
	first := &list.Items[0]
	execIn(t, first, "c", nil, "touch", "/tmp/load")
	loaded := time.Now()
	awaitReplicas(t, ns, 90*time.Second, func(ready int32) bool { return ready >= 2 })
	t.Logf("scaled up %.0f s after the load began", time.Since(loaded).Seconds())
	execIn(t, first, "c", nil, "rm", "/tmp/load")
	idle := time.Now()
	awaitReplicas(t, ns, 120*time.Second, func(ready int32) bool { return ready == 1 })
	t.Logf("scaled down %.0f s after its end; %.0f s in all", time.Since(idle).Seconds(), time.Since(began).Seconds())
}

func deployLoad(t *testing.T, ns string) {
	t.Helper()
	labels := map[string]string{"app": "load"}
	p := pod("load", loadScript, restart(corev1.RestartPolicyAlways))
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("32Mi")}
	_, err := kube.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "load"},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: p.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// autoscale wants half of the requested CPU time to be used, without the patience
// that is due elsewhere.
func autoscale(t *testing.T, ns string) {
	t.Helper()
	_, err := kube.AutoscalingV2().HorizontalPodAutoscalers(ns).Create(t.Context(), &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "load"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "load"},
			MinReplicas:    ptr.To(int32(1)), MaxReplicas: 2,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To(int32(50))},
			}}},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
				ScaleUp:   &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To(int32(0))},
				ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To(int32(0))},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func awaitReplicas(t *testing.T, ns string, limit time.Duration, enough func(ready int32) bool) {
	t.Helper()
	eventually(t, limit, "the autoscaler", func() error {
		d, err := kube.AppsV1().Deployments(ns).Get(t.Context(), "load", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if d.Status.ReadyReplicas != d.Status.Replicas || !enough(d.Status.ReadyReplicas) {
			h, err := kube.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "load", metav1.GetOptions{})
			if err != nil {
				return err
			}
			return fmt.Errorf("%d of %d ready; the autoscaler: %s", d.Status.ReadyReplicas, d.Status.Replicas, deep(t, h.Status))
		}
		return nil
	})
}
