package kubelet

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The attributes are those of the kubelet's own table
// (pkg/kubelet/server/auth_test.go).
func TestAttributes(t *testing.T) {
	for path, want := range map[string][]string{
		"/stats/summary": {"stats"}, "/stats": {"stats"}, "/statsx": {"proxy"},
		"/metrics": {"metrics"}, "/metrics/resource": {"metrics"}, "/metrics/cadvisor": {"metrics"}, "/metrics/probes": {"metrics"}, "/metricsx": {"proxy"},
		"/pods": {"pods", "proxy"}, "/runningpods/": {"pods", "proxy"}, "/healthz": {"healthz", "proxy"}, "/configz": {"configz", "proxy"},
		"/logs/x": {"log"}, "/checkpoint/a/b/c": {"checkpoint"},
		"/exec/a/b/c": {"proxy"}, "/run/a/b/c": {"proxy"}, "/attach/a/b/c": {"proxy"}, "/portForward/a/b": {"proxy"}, "/containerLogs/a/b/c": {"proxy"}, "/": {"proxy"},
	} {
		for method, verb := range map[string]string{"GET": "get", "POST": "create"} {
			var got []string
			for _, a := range attributes(&user.DefaultInfo{Name: "u"}, httptest.NewRequest(method, path, nil), "burst") {
				if a.GetVerb() != verb || a.GetResource() != "nodes" || a.GetName() != "burst" || a.GetAPIVersion() != "v1" || !a.IsResourceRequest() {
					t.Errorf("%s %s: %+v", method, path, a)
				}
				got = append(got, a.GetSubresource())
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", path, got, want)
			}
		}
	}
}

// someStats is a Stats whose summary tells what it was asked.
type someStats struct{ err error }

func (s someStats) Summary(_ context.Context, only bool) (*statsapi.Summary, error) {
	name := "all"
	if only {
		name = "only"
	}
	return &statsapi.Summary{Node: statsapi.NodeStats{NodeName: name}, Pods: []statsapi.PodStats{}}, s.err
}

func gauge(name string) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: "h"}))
	return r
}

func TestMetricsRoutes(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	waits := testPod()
	waits.Name, waits.Status.ContainerStatuses[0].State = "q", corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
	ended := testPod()
	ended.Name, ended.Status.ContainerStatuses[0].State = "r", corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	two := testPod()
	two.Status.InitContainerStatuses = two.Status.ContainerStatuses
	u := serve(t, nomad, &pods{}, func(o *Options) {
		o.List = func() []*corev1.Pod { return []*corev1.Pod{two, waits, ended} }
		o.Stats = someStats{}
		o.Metrics = Metrics{Resource: gauge("resource"), CAdvisor: gauge("cadvisor"), Probes: gauge("probes")}
	})
	for path, want := range map[string][]string{
		"/stats/summary": {`"nodeName":"all"`, `"pods":[]`},
		"/stats/summary?only_cpu_and_memory=true":  {`"nodeName":"only"`},
		"/stats/summary?only_cpu_and_memory=false": {`"nodeName":"all"`},
		"/metrics/resource":                        {"# TYPE resource gauge\nresource 0\n"},
		"/metrics/cadvisor":                        {"cadvisor 0\n"},
		"/metrics/probes":                          {"probes 0\n"},
		"/metrics": {
			`kubelet_node_name{node="burst"} 1`, "kubelet_running_pods 1\n", `kubelet_running_containers{container_state="running"} 2`,
			`kubelet_running_containers{container_state="exited"} 1`, "process_start_time_seconds ", "go_goroutines ",
		},
	} {
		code, body := fetch(t, u+path)
		for _, w := range want {
			if code != 200 || !strings.Contains(body, w) {
				t.Errorf("%s: %d, no %q in %.2000s", path, code, w, body)
			}
		}
		if kind := request(t, t.Context(), "good", u+path).Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/plain; version=0.0.4") && kind != "application/json" {
			t.Errorf("%s is of type %q", path, kind)
		}
	}
	r, err := http.NewRequest(http.MethodPost, u+"/stats/summary", strings.NewReader("only_cpu_and_memory=true"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer good")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := insecure.Do(r)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("%v %v", resp, err)
	}
	resp.Body.Close()
}

func TestSummaryFails(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	u := serve(t, nomad, &pods{}, func(o *Options) { o.Stats = someStats{errors.New("no Nomad")} })
	if code, body := fetch(t, u+"/stats/summary"); code != 500 || body != "Internal Error: no Nomad\n" {
		t.Errorf("%d %q", code, body)
	}
	// Without them there are no such paths.
	if code, _ := fetch(t, u+"/metrics/resource"); code != 404 {
		t.Errorf("%d", code)
	}
}
