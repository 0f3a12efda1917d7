package translate

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

var debugNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const debugUID = "6f1c7a52-3f0e-4f0b-9a51-0d2b1c3e4f51"

// runningAs is the allocation of a pod that runs.
func runningAs(tasks ...string) *api.Allocation {
	a := &api.Allocation{ID: "a110c", NodeID: "c11e27", TaskStates: map[string]*api.TaskState{}, NetworkStatus: &api.AllocNetworkStatus{Address: "172.26.64.9"}}
	for _, t := range tasks {
		a.TaskStates[t] = &api.TaskState{State: taskRunning}
	}
	return a
}

func TestGoldenEphemeral(t *testing.T) {
	dir := "testdata/debug"
	pod, in := readCase(t, dir)
	for _, ec := range pod.Spec.EphemeralContainers {
		t.Run(ec.Name, func(t *testing.T) {
			before := pod.DeepCopy()
			res, err := EphemeralJob(pod, ec.Name, runningAs("web", CompanionTask), in)
			got := renderResult(t, res, err)
			if diff := cmp.Diff(before, pod); diff != "" {
				t.Errorf("the pod was changed:\n%s", diff)
			}
			for _, name := range []string{"job.json", "notes.txt", "items.yaml", "error.txt"} {
				compareGolden(t, filepath.Join(dir, "ephemeral-"+ec.Name+"-"+name), got[name])
			}
		})
	}
}

// debugged is a pod with one ephemeral container.
func debugged(change func(*corev1.Pod, *corev1.EphemeralContainer)) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Namespace, pod.Name, pod.UID = "ns", "p", debugUID
	pod.Spec.Containers = []corev1.Container{{Name: "web", Image: "img"}}
	pod.Spec.EphemeralContainers = make([]corev1.EphemeralContainer, 1)
	ec := &pod.Spec.EphemeralContainers[0]
	ec.Name, ec.Image = "dbg", "busybox:1.36"
	if change != nil {
		change(pod, ec)
	}
	return pod
}

func TestEphemeralNamespaces(t *testing.T) {
	const pause = "container:nomad_init_a110c"
	for name, c := range map[string]struct {
		change   func(*corev1.Pod, *corev1.EphemeralContainer)
		node     func(*NodeProfile)
		net, pid any
	}{
		"plain":  {nil, nil, pause, nil},
		"target": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) { ec.TargetContainerName = "web" }, nil, pause, "container:web-a110c"},
		"target named alloc": {func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
			p.Spec.Containers[0].Name, ec.TargetContainerName = "alloc", "alloc"
		}, nil, pause, "container:alloc--a110c"},
		"shared processes": {func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
			p.Spec.ShareProcessNamespace, ec.TargetContainerName = new(true), "web"
		}, nil, pause, pause},
		"host network": {func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
			p.Spec.HostNetwork, ec.TargetContainerName = true, "web"
		}, nil, "host", "container:web-a110c"},
		"host network node": {nil, func(n *NodeProfile) { n.Network = NetworkHost }, "host", nil},
		"host processes": {func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
			p.Spec.HostPID, ec.TargetContainerName = true, "web"
		}, nil, pause, "host"},
		"operator's row": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) { ec.TargetContainerName = "web" }, func(n *NodeProfile) {
			n.Runtimes[""] = Runtime{Driver: driverDocker, Config: map[string]any{"runtime": "runsc", "network_mode": "host"}}
		}, pause, "container:web-a110c"},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInputs()
			if c.node != nil {
				c.node(&in.Node)
			}
			res, err := EphemeralJob(debugged(c.change), "dbg", runningAs("web"), in)
			if err != nil {
				t.Fatal(err)
			}
			config := res.Job.TaskGroups[0].Tasks[0].Config
			if config["network_mode"] != c.net || config["pid_mode"] != c.pid {
				t.Errorf("network_mode %v, pid_mode %v", config["network_mode"], config["pid_mode"])
			}
			if res.Job.TaskGroups[0].Networks != nil && res.Job.TaskGroups[0].Networks[0].Mode != "host" {
				t.Error("the job has a network of its own")
			}
		})
	}
}

func TestEphemeralVolumes(t *testing.T) {
	mounts := func(source corev1.VolumeSource, inWeb bool) func(*corev1.Pod, *corev1.EphemeralContainer) {
		return func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: source}}
			m := []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
			if ec.VolumeMounts = m; inWeb {
				p.Spec.Containers[0].VolumeMounts = m
			}
		}
	}
	secret := corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	host := func(path string) corev1.VolumeSource {
		return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}
	}
	for name, c := range map[string]struct {
		source    corev1.VolumeSource
		inWeb     bool
		companion bool
		want      string // source of the mount, or the refused field
		readOnly  bool
	}{
		"emptyDir":                 {empty, true, false, "../../a110c/alloc/data", false},
		"emptyDir of none":         {empty, false, false, "!spec.ephemeralContainers[dbg].volumeMounts[/v]", false},
		"memory":                   {memory, true, false, "!spec.ephemeralContainers[dbg].volumeMounts[/v]", false},
		"Secret by template":       {secret, true, false, "../../a110c/web/secrets/vol/v", true},
		"Secret by template, none": {secret, false, false, "!spec.ephemeralContainers[dbg].volumeMounts[/v]", false},
		"Secret by the companion":  {secret, true, true, "../../a110c/pod.companion/secrets/vol/v", true},
		"hostPath":                 {host("/srv/x"), false, false, "/srv/x", false},
		"hostPath that is refused": {host("/etc"), false, false, "!spec.volumes[v].hostPath", false},
		"volume that is not there": {corev1.VolumeSource{}, false, false, "!spec.ephemeralContainers[dbg].volumeMounts[/v]", false},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInputs()
			in.Node.HostAccess.HostPaths = []string{"/srv"}
			in.Secrets["s"] = []string{"k"}
			alloc := runningAs("web")
			if c.companion {
				alloc = runningAs("web", CompanionTask)
			}
			res, err := EphemeralJob(debugged(mounts(c.source, c.inWeb)), "dbg", alloc, in)
			if field, refused := strings.CutPrefix(c.want, "!"); refused {
				var r *RefusedError
				if !errors.As(err, &r) || !slices.ContainsFunc(r.Refusals, func(r Refusal) bool { return r.Field == field }) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Items) > 0 {
				t.Errorf("values of the pod's volumes are projected again: %v", res.Items)
			}
			config := res.Job.TaskGroups[0].Tasks[0].Config
			if binds, _ := config["volumes"].([]string); len(binds) == 1 && binds[0] == c.want+":/v" {
				return
			}
			for _, m := range config["mount"].([]map[string]any) {
				if m["target"] == "/v" && m["source"] == c.want && m["readonly"] == c.readOnly {
					return
				}
			}
			t.Errorf("mounts %v, volumes %v", config["mount"], config["volumes"])
		})
	}
}

func TestEphemeralRefusals(t *testing.T) {
	long := strings.Repeat("x", 63)
	for name, c := range map[string]struct {
		change func(*corev1.Pod, *corev1.EphemeralContainer)
		want   string
	}{
		"VM": {func(p *corev1.Pod, _ *corev1.EphemeralContainer) { p.Spec.RuntimeClassName = new("nomad-vm") }, "spec.ephemeralContainers[dbg]: there is no container to join"},
		"privileged": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
			ec.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
		}, "spec.ephemeralContainers[dbg].securityContext.privileged"},
		"capability": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
			ec.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}
		}, "add it to virtualNodes[].hostAccess.capabilities"},
		"long name with a value": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
			ec.Name = long
			ec.Env = []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}}}
		}, "is 9 characters too long"},
		"long name": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) { ec.Name = long }, ""},
		"missing": {func(_ *corev1.Pod, ec *corev1.EphemeralContainer) {
			ec.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}}
		}, `secret "none" not found`},
		"a volume of the pod that is missing is not its concern": {func(p *corev1.Pod, _ *corev1.EphemeralContainer) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}}}}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInputs()
			in.Cluster = "c123456789012345678x"
			in.Secrets["s"] = []string{"k"}
			pod := debugged(c.change)
			res, err := EphemeralJob(pod, pod.Spec.EphemeralContainers[0].Name, runningAs("web"), in)
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v", err)
			case c.want == "" && !strings.HasPrefix(*res.Job.ID, "k8sx-"+in.Cluster+"-"+debugUID+"-"):
				t.Errorf("ID %s", *res.Job.ID)
			}
		})
	}
	if _, err := EphemeralJob(debugged(nil), "other", runningAs("web"), testInputs()); err == nil {
		t.Error("there is no such container")
	}
}

func TestOwner(t *testing.T) {
	for id, want := range map[string][2]string{
		JobID("c1", debugUID):                     {debugUID, ""},
		JobID("c1", "u"):                          {"u", ""},
		CompanionID("c1", debugUID, "debugger-x"): {debugUID, "debugger-x"},
		CompanionID("c2", debugUID, "debugger"):   {},
		CompanionID("c1", "u", "debugger"):        {},
		CompanionPrefix("c1", debugUID):           {},
		"k8sx-c1-" + debugUID:                     {},
		"k8sx-c1-" + debugUID + "xdebugger":       {},
		"k8s-c1-":                                 {},
		"web":                                     {},
	} {
		uid, name, ok := Owner("c1", id)
		if uid != types.UID(want[0]) || name != want[1] || ok != (want[0] != "") {
			t.Errorf("Owner(%s) = %q, %q, %v", id, uid, name, ok)
		}
	}
}

func TestEphemeralStatus(t *testing.T) {
	started := debugNow.Add(-10 * time.Second)
	alloc := func(status string, ts *api.TaskState) *api.Allocation {
		return &api.Allocation{ID: "e1", ClientStatus: status, TaskStates: map[string]*api.TaskState{"dbg": ts}}
	}
	failure := []*api.TaskEvent{{Type: api.TaskDriverFailure, DisplayMessage: "Failed to pull `x`"}}
	ran := &api.TaskState{State: taskDead, StartedAt: started, Events: []*api.TaskEvent{{Type: api.TaskTerminated, Time: debugNow.UnixNano(), Details: map[string]string{"exit_code": "7"}}}}
	for name, c := range map[string]struct {
		prev  corev1.ContainerStatus
		facts EphemeralFacts
		want  string
	}{
		"nothing known":       {corev1.ContainerStatus{}, EphemeralFacts{}, "waiting ContainerCreating"},
		"state of the room":   {corev1.ContainerStatus{}, EphemeralFacts{State: waiting("CreateContainerConfigError", "x")}, "waiting CreateContainerConfigError"},
		"pending":             {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("pending", &api.TaskState{State: taskPending})}, "waiting ContainerCreating"},
		"no image":            {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("failed", &api.TaskState{State: taskDead, Failed: true, Events: failure}), Tries: 1}, "waiting ErrImagePull"},
		"no image again":      {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("failed", &api.TaskState{State: taskDead, Failed: true, Events: failure}), Tries: 2}, "waiting ImagePullBackOff"},
		"running":             {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("running", &api.TaskState{State: taskRunning, StartedAt: started})}, "running nomad://e1/dbg"},
		"running, not known":  {corev1.ContainerStatus{ContainerID: "nomad://e1/dbg", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}, EphemeralFacts{}, "running nomad://e1/dbg"},
		"its client was lost": {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("lost", &api.TaskState{State: taskRunning, StartedAt: started})}, "terminated 137"},
		"ended":               {corev1.ContainerStatus{}, EphemeralFacts{Alloc: alloc("failed", ran)}, "terminated 7"},
		"told as ended": {corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}}},
			EphemeralFacts{Alloc: alloc("running", &api.TaskState{State: taskRunning, StartedAt: started})}, "terminated 3"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := debugged(nil)
			c.prev.Name = "dbg"
			pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{c.prev}
			s := Status(pod, nil, Facts{Now: debugNow, Ephemeral: map[string]EphemeralFacts{"dbg": c.facts}})
			if len(s.EphemeralContainerStatuses) != 1 {
				t.Fatalf("%+v", s.EphemeralContainerStatuses)
			}
			st := s.EphemeralContainerStatuses[0]
			got := ""
			switch {
			case st.State.Waiting != nil:
				got = "waiting " + st.State.Waiting.Reason
			case st.State.Running != nil:
				got = "running " + st.ContainerID
			case st.State.Terminated != nil:
				got = fmt.Sprint("terminated ", st.State.Terminated.ExitCode)
			}
			if got != c.want || st.Ready || st.RestartCount != 0 || st.Name != "dbg" {
				t.Errorf("%s: %+v", got, st)
			}
		})
	}
}

// A final phase is not told while an ephemeral container runs.
func TestEphemeralHoldsTheEnd(t *testing.T) {
	pod := debugged(nil)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Status.Phase = corev1.PodRunning
	own := &api.Allocation{ID: "a", ClientStatus: "complete", TaskStates: map[string]*api.TaskState{"web": {State: taskDead, StartedAt: debugNow, Events: []*api.TaskEvent{{Type: api.TaskTerminated, Time: debugNow.UnixNano()}}}}}
	f := Facts{Now: debugNow, Ephemeral: map[string]EphemeralFacts{"dbg": {Alloc: &api.Allocation{ID: "e", ClientStatus: "running", TaskStates: map[string]*api.TaskState{"dbg": {State: taskRunning, StartedAt: debugNow}}}}}}
	if s := Status(pod, own, f); s.Phase != corev1.PodRunning {
		t.Errorf("phase %s", s.Phase)
	}
	f.Ephemeral["dbg"].Alloc.ClientStatus = "complete"
	if s := Status(pod, own, f); s.Phase != corev1.PodSucceeded {
		t.Errorf("phase %s", s.Phase)
	}
}
