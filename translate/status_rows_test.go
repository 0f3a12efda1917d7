package translate

import (
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

type tasks = map[string]*api.TaskState

func TestStatusOfContainers(t *testing.T) {
	rows := []statusRow{
		{name: "no allocation yet", pod: statusPod(),
			want: "Pending; web:ContainerCreating", conds: condsNone},
		{name: "no allocation, init containers", pod: statusPod(inits("i")),
			want: "Pending; i:ContainerCreating; web:PodInitializing"},
		{name: "no job: waits for an object", pod: statusPod(),
			facts: func(f *Facts) {
				f.Waiting = &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: "m"}
			},
			want: "Pending; web:CreateContainerConfigError"},
		{name: "placed", pod: statusPod(), status: "pending", tasks: tasks{"web": task("pending", 0, -1)},
			want: "Pending; web:ContainerCreating", conds: condsNone},
		{name: "running", pod: statusPod(), status: "running", tasks: tasks{"web": task("running", 0, 1, event(api.TaskStarted, 1))},
			want: "Running; web:running ready", conds: condsReady},
		{name: "one of two still starts", pod: statusPod(mains("web", "b")), status: "running",
			tasks: tasks{"web": task("running", 0, 1), "b": task("pending", 0, -1)},
			want:  "Pending; web:running ready; b:ContainerCreating", conds: condsUnready},
		{name: "the reserved name", pod: statusPod(mains("alloc")), status: "running", tasks: tasks{"alloc-": task("running", 0, 1)},
			want: "Running; alloc:running ready"},

		// Crashes.
		{name: "first crash", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 1, 1, event(api.TaskStarted, 1), exit(3, 2), event(api.TaskRestarting, 2))},
			want:  "Running; web:Error(3)", conds: condsUnready},
		{name: "runs again", pod: statusPod(), status: "running",
			tasks: tasks{"web": task("running", 1, 4, event(api.TaskStarted, 1), exit(3, 2), event(api.TaskRestarting, 2), event(api.TaskStarted, 4))},
			want:  "Running; web:running ready x1 last=Error(3)", conds: condsReady},
		{name: "second crash", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 2, 4, exit(3, 2), event(api.TaskStarted, 4), exit(4, 5), event(api.TaskRestarting, 5))},
			want:  "Running; web:CrashLoopBackOff x1 last=Error(4)", conds: condsUnready},
		{name: "long crash loop", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 40, 400, event(api.TaskStarted, 400), exit(0, 401), event(api.TaskRestarting, 402))},
			want:  "Running; web:CrashLoopBackOff x39 last=Completed(0)"},
		{name: "out of memory", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 1, 1, event(api.TaskStarted, 1), event(api.TaskTerminated, 2, "exit_code", "137", "oom_killed", "true"))},
			want:  "Running; web:OOMKilled(137)"},
		{name: "first crash after images that could not be pulled", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 4, 9, event(api.TaskDriverFailure, 3), event(api.TaskStarted, 9), exit(1, 10))},
			facts: func(f *Facts) { f.StartFailures = map[string]uint64{"web": 3} },
			want:  "Running; web:Error(1)"},
		{name: "runs after images that could not be pulled", pod: statusPod(), status: "running",
			tasks: tasks{"web": task("running", 3, 9, event(api.TaskDriverFailure, 3), event(api.TaskStarted, 9))},
			facts: func(f *Facts) { f.StartFailures = map[string]uint64{"web": 3} },
			want:  "Running; web:running ready"},
		{name: "crashed, then could not be started", pod: statusPod(), status: "pending",
			tasks: tasks{"web": task("pending", 2, 1, event(api.TaskStarted, 1), exit(3, 2), told(api.TaskSetupFailure, 4, "no room"))},
			want:  "Running; web:CreateContainerConfigError x1 last=Error(3)"},

		// Restart policies.
		{name: "Never, parked beside another", pod: statusPod(policy("Never"), mains("web", "b")), status: "running",
			tasks: tasks{"web": task("pending", 1, 1, event(api.TaskStarted, 1), exit(1, 2)), "b": task("running", 0, 1)},
			want:  "Running; web:Error(1); b:running ready", conds: condsUnready},
		{name: "Never, both parked", pod: statusPod(policy("Never"), mains("web", "b")), status: "pending",
			tasks: tasks{"web": task("pending", 1, 1, exit(1, 2)), "b": task("dead", 0, 1, exit(0, 2))},
			want:  "Failed; web:Error(1); b:Completed(0)", conds: condsFailed},
		{name: "Never, parked, then its pod was stopped", pod: statusPod(policy("Never"), mains("web", "b")), status: "complete",
			tasks: tasks{
				"web": task("dead", 1, 1, event(api.TaskStarted, 1), exit(1, 2), event(api.TaskRestarting, 2), event(api.TaskKilling, 3), event(api.TaskKilled, 4)),
				"b":   task("dead", 0, 1, exit(0, 2)),
			},
			want: "Failed; web:Error(1); b:Completed(0)"},
		{name: "Never, all ended well", pod: statusPod(policy("Never"), mains("web", "b")), status: "complete",
			tasks: tasks{"web": task("dead", 0, 1, exit(0, 2)), "b": task("dead", 0, 1, exit(0, 2))},
			want:  "Succeeded; web:Completed(0); b:Completed(0)", conds: condsDone},
		{name: "OnFailure, one ended well", pod: statusPod(policy("OnFailure"), mains("web", "b")), status: "running",
			tasks: tasks{"web": task("dead", 0, 1, exit(0, 2)), "b": task("running", 0, 1)},
			want:  "Running; web:Completed(0); b:running ready"},
		{name: "OnFailure, failed once", pod: statusPod(policy("OnFailure")), status: "pending",
			tasks: tasks{"web": task("pending", 1, 1, exit(2, 2))},
			want:  "Running; web:Error(2)"},
		{name: "OnFailure, ended well at last", pod: statusPod(policy("OnFailure")), status: "complete",
			tasks: tasks{"web": task("dead", 2, 9, exit(2, 2), exit(0, 10))},
			want:  "Succeeded; web:Completed(0) x2", conds: condsDone},

		{name: "about to be told as ended", pod: statusPod(policy("Never")), status: "running",
			tasks: tasks{"web": task("running", 0, 1, event(api.TaskStarted, 1), exit(0, 2))},
			want:  "Running; web:running ready"},
		{name: "about to be told as ended again", pod: statusPod(), status: "running",
			tasks: tasks{"web": task("running", 1, 3, exit(1, 2), event(api.TaskStarted, 3), exit(4, 5))},
			want:  "Running; web:running ready x1 last=Error(1)"},

		// The end of the allocation.
		{name: "never started: no more tries", pod: statusPod(policy("Never")), status: "failed",
			tasks: tasks{"web": task("dead", 0, -1, told(api.TaskDriverFailure, 1, "no such image"))},
			want:  "Failed/NomadAllocationFailed; web:StartError(128)", conds: condsFailed},
		{name: "given up by Nomad while it ran, ended well", pod: statusPod(policy("Never"), inits("a"), mains("web", "b")), status: "failed",
			tasks: tasks{
				"a":   task("dead", 0, 1, exit(0, 2), told(api.TaskSetupFailure, 8, "no network")),
				"web": task("dead", 0, 3, event(api.TaskStarted, 3), told(api.TaskSetupFailure, 8, "no network"), exit(0, 9)),
				"b":   task("dead", 0, 3, exit(0, 5)),
			},
			want: "Failed/NomadAllocationFailed; a:Completed(0) ready; web:Completed(0); b:Completed(0)", conds: condsFailed},
		{name: "given up by Nomad with a restart to come", pod: statusPod(), status: "failed",
			tasks: tasks{"web": task("dead", 0, 3, event(api.TaskSiblingFailed, 8), exit(0, 9))},
			want:  "Failed/NomadAllocationFailed; web:Completed(0)", conds: condsFailed},
		{name: "given up by Nomad when all was done", pod: statusPod(policy("Never"), inits("+s")), status: "failed",
			tasks: tasks{
				"s":   task("dead", 0, 1, told(api.TaskSetupFailure, 8, "no network"), exit(0, 9)),
				"web": task("dead", 0, 3, exit(0, 5), told(api.TaskSetupFailure, 8, "no network")),
			},
			want: "Succeeded; s:Completed(0); web:Completed(0)", conds: condsDone},
		{name: "lost while it ran", pod: statusPod(), status: "lost", tasks: tasks{"web": task("running", 0, 1)},
			want: "Failed; web:ContainerStatusUnknown(137)", conds: condsFailed},
		{name: "lost in back-off", pod: statusPod(), status: "lost",
			tasks: tasks{"web": task("pending", 2, 4, exit(3, 2), event(api.TaskStarted, 4), exit(4, 5))},
			want:  "Failed; web:Error(4) x1 last=Error(4)"},
		{name: "stopped by hand, ended well", pod: statusPod(), status: "complete", tasks: tasks{"web": task("dead", 0, 1, exit(0, 9))},
			want: "Succeeded; web:Completed(0)", conds: condsDone},
		{name: "client out of sight", pod: statusPod(), status: "unknown", tasks: tasks{"web": task("running", 0, 1)},
			want:  "Running; web:running ready",
			conds: "PodReadyToStartContainers=True Initialized=True ContainersReady=True Ready=False:NomadClientDisconnected"},
	}
	for _, r := range rows {
		t.Run(r.name, r.run)
	}
}

func TestStatusOfInitContainers(t *testing.T) {
	done := func() *api.TaskState { return task("dead", 0, 1, event(api.TaskStarted, 1), exit(0, 2)) }
	rows := []statusRow{
		{name: "first runs", pod: statusPod(inits("a", "b")), status: "pending",
			tasks: tasks{"a": task("running", 0, 1), "b": task("pending", 0, -1), "web": task("pending", 0, -1)},
			want:  "Pending; a:running; b:PodInitializing; web:PodInitializing", conds: condsInit},
		{name: "second's turn", pod: statusPod(inits("a", "b")), status: "pending",
			tasks: tasks{"a": done(), "b": task("running", 0, 3), "web": task("pending", 0, -1)},
			want:  "Pending; a:Completed(0) ready; b:running; web:PodInitializing"},
		{name: "both done", pod: statusPod(inits("a", "b")), status: "pending",
			tasks: tasks{"a": done(), "b": done(), "web": task("pending", 0, -1)},
			want:  "Pending; a:Completed(0) ready; b:Completed(0) ready; web:ContainerCreating", conds: condsUnready},
		{name: "main runs", pod: statusPod(inits("a")), status: "running", tasks: tasks{"a": done(), "web": task("running", 0, 3)},
			want: "Running; a:Completed(0) ready; web:running ready", conds: condsReady},
		{name: "crash loop before the main", pod: statusPod(inits("a")), status: "pending",
			tasks: tasks{"a": task("pending", 2, 4, event(api.TaskStarted, 4), exit(1, 5)), "web": task("pending", 0, -1)},
			want:  "Pending; a:CrashLoopBackOff x1 last=Error(1); web:PodInitializing", conds: condsInit},
		{name: "fails for good", pod: statusPod(policy("Never"), inits("a", "b")), status: "pending",
			tasks: tasks{"a": task("pending", 1, 1, exit(1, 2)), "b": task("pending", 0, -1), "web": task("pending", 0, -1)},
			want:  "Failed; a:Error(1); b:PodInitializing; web:PodInitializing",
			conds: "PodReadyToStartContainers=False Initialized=False:ContainersNotInitialized ContainersReady=False:PodFailed Ready=False:PodFailed"},
		{name: "failed for good and over: the others never had their turn", pod: statusPod(policy("Never"), inits("a", "b")), status: "failed",
			tasks: tasks{"a": task("dead", 0, 1, exit(1, 2))},
			want:  "Failed; a:Error(1); b:PodInitializing; web:PodInitializing"},

		{name: "sidecar runs, main starts", pod: statusPod(inits("+s")), status: "running",
			tasks: tasks{"s": task("running", 0, 1), "web": task("pending", 0, -1)},
			want:  "Pending; s:running ready; web:ContainerCreating", conds: condsUnready},
		{name: "sidecar and main run", pod: statusPod(inits("+s")), status: "running",
			tasks: tasks{"s": task("running", 0, 1), "web": task("running", 0, 2)},
			want:  "Running; s:running ready; web:running ready", conds: condsReady},
		{name: "sidecar in back-off: the pod stays initialized and running", pod: statusPod(inits("+s")), status: "running",
			tasks: tasks{"s": task("pending", 2, 3, event(api.TaskStarted, 3), exit(1, 4)), "web": task("running", 0, 2)},
			want:  "Running; s:CrashLoopBackOff x1 last=Error(1); web:running ready", conds: condsUnready},
		{name: "main ended, sidecar still runs: not over yet", pod: statusPod(policy("Never"), inits("+s")), status: "running",
			tasks: tasks{"s": task("running", 0, 1), "web": task("dead", 0, 2, exit(0, 3))},
			want:  "Pending; s:running ready; web:Completed(0)"},
		{name: "main ended, then the sidecar was killed", pod: statusPod(policy("Never"), inits("+s")), status: "complete",
			tasks: tasks{"s": task("dead", 0, 1, exit(143, 5)), "web": task("dead", 0, 2, exit(0, 3))},
			want:  "Succeeded; s:Error(143); web:Completed(0)", conds: condsDone},
	}
	for _, r := range rows {
		t.Run(r.name, r.run)
	}
}

func TestStatusOfFailedStarts(t *testing.T) {
	for _, r := range []struct {
		kind, message string
		tries         uint64
		want          string
	}{
		{api.TaskDriverFailure, "Failed to pull `nope:1`: not found", 1, "ErrImagePull"},
		{api.TaskDriverFailure, "Failed to pull `nope:1`: not found", 2, "ImagePullBackOff"},
		{api.TaskDriverFailure, "pull access denied for x", 1, "ErrImagePull"},
		{api.TaskDriverFailure, "failed to download image", 3, "ImagePullBackOff"},
		{api.TaskArtifactDownloadFailed, "GET https://x: 404", 1, "ErrImagePull"},
		{api.TaskArtifactDownloadFailed, "GET https://x: 404", 5, "ImagePullBackOff"},
		{api.TaskSetupFailure, "x", 1, "CreateContainerConfigError"},
		{api.TaskFailedValidation, "x", 1, "CreateContainerConfigError"},
		{api.TaskDriverFailure, "failed to parse config: x", 1, "CreateContainerConfigError"},
		{api.TaskDriverFailure, "Failed to create container configuration", 1, "CreateContainerError"},
		{api.TaskDriverFailure, "container has runAsNonRoot and image will run as root (pod: x)", 1, "CreateContainerConfigError"},
		{api.TaskDriverFailure, "exec: no such file", 1, "RunContainerError"},
		{taskHookFailed, "dispatch: x", 1, "RunContainerError"},
	} {
		pod := statusPod()
		alloc := allocOf("pending", tasks{"web": task("pending", r.tries, -1, told(r.kind, 1, r.message), event(api.TaskRestarting, 2))})
		s := stable(t, pod, alloc, statusFacts(statusNow))
		w := s.ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != r.want || s.Phase != corev1.PodPending || s.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s %q, try %d: got %s, want %s", r.kind, r.message, r.tries, summary(&s), r.want)
		} else if !strings.Contains(w.Message, r.message) {
			t.Errorf("%s: message %q hides Nomad's %q", r.kind, w.Message, r.message)
		}
	}
}
