package stats

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
)

// cpuTime is what a process has used, in seconds (proc(5), stat, 14 and 15).
func cpuTime(t *testing.T, pid string) float64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks / 100 // USER_HZ
}

// A real Nomad's statistics of a task that works half of the time, integrated, come
// near to what the kernel counts. Its driver looks every five seconds.
func TestLive(t *testing.T) {
	agent := nomadtest.Start(t, "")
	file := filepath.Join(t.TempDir(), "pid")
	id := "busy"
	alloc := agent.Run(t, &api.Job{
		ID: &id, Name: &id, Type: ptr.To("batch"), Datacenters: []string{"*"},
		TaskGroups: []*api.TaskGroup{{Name: ptr.To("pod"), Tasks: []*api.Task{{
			Name: "a", Driver: "raw_exec",
			Config: map[string]any{"command": "/bin/sh", "args": []string{"-c",
				`echo $$ > ` + file + `; while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done`}},
			Resources: &api.Resources{CPU: ptr.To(50), MemoryMB: ptr.To(32)},
		}}}},
	})
	pod := podOn(alloc.NodeID, "p", "raw_exec", "a")
	pod.Containers[0].AllocID, pod.Containers[0].StartedAt = alloc.ID, alloc.TaskStates["a"].StartedAt
	g := New(Options{
		Node: "burst", Namespace: "default", Source: NewSource(agent.Client, taskexec.New(agent.Client)), Clock: clock.RealClock{}, Log: hclog.NewNullLogger(),
		Pods: func() []Pod { return []Pod{pod} }, Clients: func() []Client { return []Client{{ID: alloc.NodeID, Counted: true}} },
	})
	var pid string
	nomadtest.Eventually(t, 20*time.Second, "the task's process", func() bool {
		b, err := os.ReadFile(file)
		pid = strings.TrimSpace(string(b))
		return err == nil && pid != ""
	})
	var first, last, began, ended float64
	const gatherings = 4
	for i := range gatherings {
		nomadtest.Eventually(t, 4*Interval, "another sample", func() bool {
			s, err := g.Summary(t.Context(), true)
			if err != nil || len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 {
				return false
			}
			c := s.Pods[0].Containers[0]
			now := cpuSeconds(c.CPU)
			if now <= last || *c.Memory.WorkingSetBytes < 100<<10 {
				return false
			}
			if last, ended = now, cpuTime(t, pid); i == 0 {
				first, began = last, ended
			}
			return *s.Node.Memory.WorkingSetBytes > 0 && cpuSeconds(s.Node.CPU) > 0
		})
	}
	counted, used := last-first, ended-began
	t.Logf("counted %.2f s, the kernel %.2f s", counted, used)
	if counted < used/2 || counted > used*2 {
		t.Errorf("counted %.2f s, the kernel %.2f s", counted, used)
	}
}
