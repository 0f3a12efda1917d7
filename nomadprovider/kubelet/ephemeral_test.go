package kubelet

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// An ephemeral container is reached in the allocation of its own.
func TestEphemeralContainer(t *testing.T) {
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		http.Error(w, "no such file", http.StatusNotFound)
	}))
	t.Cleanup(srv.Close)
	nomad, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	pod := testPod()
	pod.Spec.EphemeralContainers = make([]corev1.EphemeralContainer, 1)
	pod.Spec.EphemeralContainers[0].Name = "dbg"
	p := &pods{pod: pod, alloc: "a1"}
	u := serve(t, nomad, p, nil)
	if code, body := fetch(t, u+"/containerLogs/default/p/dbg"); code != http.StatusBadRequest || !strings.Contains(body, "waiting to start") {
		t.Errorf("logs before it runs: %d %s", code, body)
	}
	if code, body := fetch(t, u+"/exec/default/p/dbg?command=id&output=1"); code != http.StatusInternalServerError || !strings.Contains(body, "container not found") {
		t.Errorf("exec before it runs: %d %s", code, body)
	}
	if len(asked) > 0 {
		t.Errorf("Nomad was asked: %v", asked)
	}
	pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{
		{Name: "dbg", ContainerID: "nomad://e1/dbg", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
	}
	fetch(t, u+"/containerLogs/default/p/dbg")
	if len(asked) == 0 || !strings.HasSuffix(asked[0], "/e1") {
		t.Errorf("Nomad was asked for %v", asked)
	}
	// Its log is followed until it ends, whatever the pod's restart policy.
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	s := &Server{o: Options{Pods: p}}
	at := &target{pod: pod, container: "dbg", allocID: "a1"}
	at.locate()
	if s.ended(at) {
		t.Error("it counts as ended while it runs")
	}
	pod.Status.EphemeralContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	if !s.ended(at) {
		t.Error("it does not count as ended")
	}
}
