package node

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

func TestReadinessHysteresis(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	away := fault{reason: ReasonNomadUnreachable, message: "away"}
	type step struct {
		at    time.Duration
		f     fault
		ready bool
	}
	for name, tc := range map[string]struct {
		was   bool
		steps []step
	}{
		"a new node is not ready before Nomad answered": {false, []step{{0, away, false}, {time.Second, fault{}, true}}},
		"a short outage is not seen":                    {true, []step{{0, fault{}, true}, {1 * time.Second, away, true}, {39 * time.Second, away, true}, {40 * time.Second, fault{}, true}}},
		"a long outage is":                              {true, []step{{0, fault{}, true}, {1 * time.Second, away, true}, {41 * time.Second, away, false}, {42 * time.Second, away, false}, {43 * time.Second, fault{}, true}}},
		"two short outages do not add up":               {true, []step{{0, away, true}, {30 * time.Second, fault{}, true}, {31 * time.Second, away, true}, {60 * time.Second, away, true}, {71 * time.Second, away, false}}},
		"an outage that changes its reason goes on":     {true, []step{{0, away, true}, {30 * time.Second, fault{reason: ReasonNoReadyClients}, true}, {40 * time.Second, fault{reason: ReasonNoReadyClients}, false}}},
		"a fault that began before it was looked at":    {true, []step{{50 * time.Second, fault{reason: ReasonNomadUnreachable, since: start}, false}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := readiness{after: 40 * time.Second, ready: tc.was}
			for _, s := range tc.steps {
				v := r.judge(start.Add(s.at), s.f)
				if v.ready != s.ready {
					t.Errorf("after %s: ready = %v", s.at, v.ready)
				}
				if v.ready && s.f.reason != "" && v.recheck <= 0 {
					t.Errorf("after %s: nothing would look again", s.at)
				}
			}
		})
	}
}

func client(name string, mhz, cores int64) ClientInfo {
	return ClientInfo{
		ID: name, Name: name, Pool: "default", Datacenter: "dc1", Arch: "amd64",
		Status: api.NodeStatusReady, Eligible: true, MHz: mhz, Cores: cores, MemoryMB: 1024, DiskMB: 2048,
	}
}

func TestSummarize(t *testing.T) {
	a, b := client("a", 2000, 2), client("b", 6000, 2)
	b.ReservedMHz, b.ReservedMemoryMB, b.ReservedDiskMB = 3000, 24, 48
	b.Devices = map[string]int64{"nvidia.com/gpu": 2}
	down, drained, other, dc := client("c", 9000, 1), client("d", 1, 1), client("e", 1, 1), client("f", 1, 1)
	down.Status, drained.Eligible, other.Pool, dc.Datacenter = api.NodeStatusDown, false, "gpu", "dc2"
	down.MHz = 4000
	down.Cores = 2

	s := summarize([]ClientInfo{a, b, down, drained, other, dc}, "default", []string{"dc1"}, 10)
	if s.members != 4 || s.ready != 2 || s.mhzPerCore != 3000 {
		t.Errorf("members %d, ready %d, MHz per core %d", s.members, s.ready, s.mhzPerCore)
	}
	for name, want := range map[corev1.ResourceName][2]string{
		corev1.ResourceCPU:              {"2666m", "1666m"}, // 8000 and 5000 MHz at 3000 a core
		corev1.ResourceMemory:           {"2Gi", "2024Mi"},
		corev1.ResourceEphemeralStorage: {"4Gi", "4048Mi"},
		corev1.ResourcePods:             {"20", "20"},
		"nvidia.com/gpu":                {"2", "2"},
	} {
		got := [2]string{quantity(s.capacity, name), quantity(s.allocatable, name)}
		if got != want {
			t.Errorf("%s: capacity and allocatable %v, want %v", name, got, want)
		}
	}
	if n := summarize([]ClientInfo{a, other, dc}, "all", []string{"dc*"}, 1).members; n != 3 {
		t.Errorf("pool all in dc*: %d members", n)
	}
	if e := summarize(nil, "default", nil, 10); e.mhzPerCore != 1000 || quantity(e.capacity, corev1.ResourceCPU) != "0" {
		t.Errorf("an empty pool: %+v", e)
	}
}

func quantity(l corev1.ResourceList, name corev1.ResourceName) string {
	q := l[name]
	return q.String()
}

func TestDevices(t *testing.T) {
	got := devices([]*api.NodeDeviceResource{
		{Vendor: "nvidia", Type: "gpu", Instances: []*api.NodeDevice{{Healthy: true}, {Healthy: false}}},
		{Vendor: "xilinx.com", Type: "fpga", Instances: []*api.NodeDevice{{Healthy: true}}},
		{Vendor: "bad vendor", Type: "x", Instances: []*api.NodeDevice{{Healthy: true}}},
	})
	if len(got) != 2 || got["nvidia.com/gpu"] != 1 || got["xilinx.com/fpga"] != 1 {
		t.Errorf("devices: %v", got)
	}
}

func TestMergeTaints(t *testing.T) {
	taint := func(key, value string) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffectNoSchedule}
	}
	mine, foreign, old := taint("mine", "1"), taint("node.kubernetes.io/not-ready", ""), taint("old", "")
	got := mergeTaints([]corev1.Taint{foreign, old, taint("mine", "changed by hand")}, []corev1.Taint{mine}, taintNames([]corev1.Taint{old, mine}))
	if !sameTaints(got, []corev1.Taint{mine, foreign}) {
		t.Errorf("taints: %v", got)
	}
	if got := mergeTaints([]corev1.Taint{old}, nil, ""); !sameTaints(got, []corev1.Taint{old}) {
		t.Errorf("a taint that was never ours was removed: %v", got)
	}
}

func TestKubeletVersion(t *testing.T) {
	for in, want := range map[string]string{"v0.35.4": "v1.35.4", "v0.36.0-rc.1": "v1.36.0-rc.1", "(devel)": fallbackKubernetes} {
		if got := kubernetesVersion(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	v := KubeletVersion("v0.1.0+dirty")
	if !strings.HasPrefix(v, "v1.") || !strings.HasSuffix(v, "+nomad-kubelet.0.1.0-dirty") {
		t.Errorf("version: %s", v)
	}
}

func TestLabels(t *testing.T) {
	l := labels("burst", "gpu", "eu", "cni/netbridge", poolSummary{arch: "arm64"}, map[string]string{"zone": "a", "type": "no", corev1.LabelTopologyRegion: "mine"})
	for k, want := range map[string]string{
		"type": "virtual-kubelet", corev1.LabelHostname: "burst", corev1.LabelArchStable: "arm64", corev1.LabelOSStable: "linux",
		"nomad-kubelet.io/node-pool": "gpu", "nomad-kubelet.io/region": "eu", "zone": "a", corev1.LabelTopologyRegion: "mine",
		corev1.LabelNodeExcludeBalancers: "true", "nomad-kubelet.io/network": "cni-netbridge",
	} {
		if l[k] != want {
			t.Errorf("%s = %q, want %q", k, l[k], want)
		}
	}
}
