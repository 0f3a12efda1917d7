package stats

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// usual is a node with a pod that the docker proxy tells of and a VM that it does
// not, ten seconds after their start.
func usual(t *testing.T) *bench {
	b := newBench(t)
	b.pods = []Pod{podOn("n1", "p", "docker", "a", "b"), podOn("n1", "vm", "qemu", "a")}
	b.pods[0].Object.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("80")}
	b.clients = []Client{{ID: "n1", DockerProxy: true, Counted: true}, {ID: "n2", Counted: true}}
	b.used = map[string]time.Duration{"a-p-alloc": 2 * time.Second, "b-p-alloc": 3 * time.Second}
	b.sampled(10, 0.25)
	b.bytes = 40
	return b
}

func TestResource(t *testing.T) {
	b := usual(t)
	// The start is 1777636800 s after the epoch.
	const want = `
# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="a",namespace="ns",pod="p"} 2 1777636810000
container_cpu_usage_seconds_total{container="a",namespace="ns",pod="vm"} 2.5 1777636810000
container_cpu_usage_seconds_total{container="b",namespace="ns",pod="p"} 3 1777636810000
# HELP container_memory_working_set_bytes [STABLE] Current working set of the container in bytes
# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{container="a",namespace="ns",pod="p"} 60 1777636810000
container_memory_working_set_bytes{container="a",namespace="ns",pod="vm"} 40 1777636810000
container_memory_working_set_bytes{container="b",namespace="ns",pod="p"} 60 1777636810000
# HELP container_start_time_seconds [STABLE] Start time of the container since unix epoch in seconds
# TYPE container_start_time_seconds gauge
container_start_time_seconds{container="a",namespace="ns",pod="p"} 1.7776368e+09
container_start_time_seconds{container="a",namespace="ns",pod="vm"} 1.7776368e+09
container_start_time_seconds{container="b",namespace="ns",pod="p"} 1.7776368e+09
# HELP container_swap_usage_bytes [ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems
# TYPE container_swap_usage_bytes gauge
container_swap_usage_bytes{container="a",namespace="ns",pod="vm"} 5 1777636810000
# HELP node_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the node in core-seconds
# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total 0.002 1777636810000
# HELP node_memory_working_set_bytes [STABLE] Current working set of the node in bytes
# TYPE node_memory_working_set_bytes gauge
node_memory_working_set_bytes 600 1777636810000
# HELP pod_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the pod in core-seconds
# TYPE pod_cpu_usage_seconds_total counter
pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 5 1777636810000
pod_cpu_usage_seconds_total{namespace="ns",pod="vm"} 2.5 1777636810000
# HELP pod_memory_working_set_bytes [STABLE] Current working set of the pod in bytes
# TYPE pod_memory_working_set_bytes gauge
pod_memory_working_set_bytes{namespace="ns",pod="p"} 120 1777636810000
pod_memory_working_set_bytes{namespace="ns",pod="vm"} 40 1777636810000
# HELP pod_swap_usage_bytes [ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems
# TYPE pod_swap_usage_bytes gauge
pod_swap_usage_bytes{namespace="ns",pod="vm"} 5 1777636810000
# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise
# TYPE resource_scrape_error gauge
resource_scrape_error 0
`
	if err := testutil.GatherAndCompare(b.Resource(), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	b.do(func() { b.broken["n2"] = true })
	b.sampled(30, 0.25)
	if err := testutil.GatherAndCompare(b.Resource(), strings.NewReader(`
# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise
# TYPE resource_scrape_error gauge
resource_scrape_error 1
# HELP node_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the node in core-seconds
# TYPE node_cpu_usage_seconds_total counter
node_cpu_usage_seconds_total 20.002 1777636830000
`), "resource_scrape_error", "node_cpu_usage_seconds_total"); err != nil {
		t.Error(err)
	}
}

func TestCAdvisor(t *testing.T) {
	b := usual(t)
	const a = `container="a",id="nomad://p-alloc/a",image="img:1",name="a-p-alloc",namespace="ns",pod="p"`
	const net = `container="",id="nomad://p-alloc",image="",interface="eth0",name="",namespace="ns",pod="p"`
	for metric, want := range map[string]string{
		"container_cpu_usage_seconds_total": `# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed in seconds.
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="a",cpu="total",id="nomad://p-alloc/a",image="img:1",name="a-p-alloc",namespace="ns",pod="p"} 2 1777636810000
container_cpu_usage_seconds_total{container="a",cpu="total",id="nomad://vm-alloc/a",image="img:1",name="a-vm-alloc",namespace="ns",pod="vm"} 2.5 1777636810000
container_cpu_usage_seconds_total{container="b",cpu="total",id="nomad://p-alloc/b",image="img:1",name="b-p-alloc",namespace="ns",pod="p"} 3 1777636810000
`,
		"container_network_receive_bytes_total": `# HELP container_network_receive_bytes_total Cumulative count of bytes received
# TYPE container_network_receive_bytes_total counter
container_network_receive_bytes_total{` + net + `} 7 1777636810000
`,
		"container_network_transmit_bytes_total": `# HELP container_network_transmit_bytes_total Cumulative count of bytes transmitted
# TYPE container_network_transmit_bytes_total counter
container_network_transmit_bytes_total{` + net + `} 9 1777636810000
`,
		"machine_cpu_cores": `# HELP machine_cpu_cores Number of logical CPU cores.
# TYPE machine_cpu_cores gauge
machine_cpu_cores{boot_id="burst",machine_id="burst",system_uuid="burst"} 4
`,
	} {
		if err := testutil.GatherAndCompare(b.CAdvisor(), strings.NewReader(want), metric); err != nil {
			t.Error(err)
		}
	}
	// What only the docker proxy knows is of its container alone.
	found, err := b.CAdvisor().Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range found {
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "name" && l.GetValue() == "a-p-alloc" {
					values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
				if l.GetName() == "name" && l.GetValue() == "a-vm-alloc" && strings.Contains(f.GetName(), "_cfs_") {
					t.Errorf("%s of a VM", f.GetName())
				}
			}
		}
	}
	for name, want := range map[string]float64{
		"container_memory_usage_bytes": 100, "container_memory_working_set_bytes": 60, "container_memory_rss": 50, "container_memory_cache": 45,
		"container_cpu_cfs_periods_total": 10, "container_cpu_cfs_throttled_periods_total": 4, "container_cpu_cfs_throttled_seconds_total": 5,
		"container_start_time_seconds": 1777636800, "container_last_seen": 1777636810,
	} {
		if values[name] != want {
			t.Errorf("%s{%s} is %g, want %g", name, a, values[name], want)
		}
	}
}

func TestSummary(t *testing.T) {
	b := usual(t)
	read := func(only bool) string {
		s, err := b.Summary(t.Context(), only)
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	all, only := read(false), read(true)
	for _, want := range []string{
		`"node":{"nodeName":"burst","startTime":"2026-05-01T12:00:00Z","cpu":{"time":"2026-05-01T12:00:10Z","usageNanoCores":2000000000,"usageCoreNanoSeconds":2000000},` +
			`"memory":{"time":"2026-05-01T12:00:10Z","availableBytes":1400,"usageBytes":600,"workingSetBytes":600}`,
		`"podRef":{"name":"p","namespace":"ns","uid":"uid-p"},"startTime":"2026-05-01T12:00:00Z"`,
		// The limit is 80 bytes.
		`{"name":"a","startTime":"2026-05-01T12:00:00Z","cpu":{"time":"2026-05-01T12:00:10Z","usageNanoCores":200000000,"usageCoreNanoSeconds":2000000000},` +
			`"memory":{"time":"2026-05-01T12:00:10Z","availableBytes":20,"usageBytes":100,"workingSetBytes":60,"rssBytes":50,"pageFaults":0,"majorPageFaults":0}}`,
		`"memory":{"time":"2026-05-01T12:00:10Z","usageBytes":200,"workingSetBytes":120,"rssBytes":100}`,
		`"memory":{"time":"2026-05-01T12:00:10Z","workingSetBytes":40,"rssBytes":40},"swap":{"time":"2026-05-01T12:00:10Z","swapUsageBytes":5}`,
	} {
		for _, got := range []string{all, only} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in %s", want, got)
			}
		}
	}
	for _, more := range []string{
		`"fs":{"time":"2026-05-01T12:00:10Z","availableBytes":60,"capacityBytes":100,"usedBytes":40}`,
		`"network":{"time":"2026-05-01T12:00:10Z","name":"eth0","rxBytes":7,"rxErrors":0,"txBytes":9,"txErrors":0,"interfaces":[`,
	} {
		if !strings.Contains(all, more) || strings.Contains(only, more) {
			t.Errorf("%s is to be in the whole summary alone: %s", more, all)
		}
	}
}
