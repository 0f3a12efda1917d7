package pods

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const termFile = "web/" + translate.TerminationLog

// The message is read once for each end, told, and kept when the container runs
// again and when this process starts anew.
func TestTerminationMessage(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.nomad.files[termFile] = "out of cheese\n"
	at := epoch.Add(second)
	r.follows(pod, entry("pending", tasks{"web": crashed(1, 1, epoch, at)}))
	if got := r.read(pod).Status.ContainerStatuses[0].State.Terminated; got == nil || got.Message != "out of cheese\n" {
		t.Fatalf("state %+v", got)
	}
	// The next run has emptied the file.
	r.nomad.files[termFile] = ""
	again := running(1, at.Add(second))
	again.Events = crashed(1, 1, epoch, at).Events
	for range 2 {
		r.follows(pod, entry("running", tasks{"web": again}))
		if got := r.read(pod).Status.ContainerStatuses[0].LastTerminationState.Terminated; got == nil || got.Message != "out of cheese\n" {
			t.Errorf("last state %+v", got)
		}
		r.restart()
	}
}

func TestTerminationMessageFromLogs(t *testing.T) {
	long := strings.Repeat("0123456789\n", 400)
	for name, tc := range map[string]struct {
		policy         corev1.TerminationMessagePolicy
		code           int
		file, out, err string
		want           string
	}{
		"file":               {policy: corev1.TerminationMessageFallbackToLogsOnError, code: 1, file: "f", out: "o", want: "f"},
		"no file":            {policy: corev1.TerminationMessageReadFile, code: 1, out: "o"},
		"log":                {policy: corev1.TerminationMessageFallbackToLogsOnError, code: 1, out: "o", want: "o"},
		"both streams":       {policy: corev1.TerminationMessageFallbackToLogsOnError, code: 1, out: "o\n", err: "e\n", want: "o\ne\n"},
		"not after success":  {policy: corev1.TerminationMessageFallbackToLogsOnError, code: 0, out: "o"},
		"80 lines, 2048 B":   {policy: corev1.TerminationMessageFallbackToLogsOnError, code: 1, err: long, want: long[len(long)-80*11:]},
		"4096 B of the file": {policy: corev1.TerminationMessageReadFile, code: 1, file: strings.Repeat("x", 5000), want: strings.Repeat("x", 4096)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			pod := r.pod(func(p *corev1.Pod) {
				p.Spec.RestartPolicy = corev1.RestartPolicyNever
				p.Spec.Containers[0].TerminationMessagePolicy = tc.policy
			})
			r.nomad.files[termFile], r.nomad.files["web/stdout"], r.nomad.files["web/stderr"] = tc.file, tc.out, tc.err
			r.follows(pod, entry("complete", tasks{"web": ended(tc.code, epoch, epoch.Add(time.Minute))}))
			if got := r.read(pod).Status.ContainerStatuses[0].State.Terminated.Message; got != tc.want {
				t.Errorf("message of %d bytes %q, want %d", len(got), truncate(got, 30), len(tc.want))
			}
		})
	}
}

// Which image runs is read once a run, where clients have the docker proxy.
func TestImagesAreTold(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(nil)
	r.nomad.files = map[string]string{"web/" + translate.ImageFile: "sha256:1"}
	r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
	if got := r.read(pod).Status.ContainerStatuses[0].ImageID; got != pod.Spec.Containers[0].Image {
		t.Errorf("without the proxy: %q", got)
	}
	node := r.nodes["n"].(testNode)
	node.profile.DockerProxy = true
	r.nodes["n"] = node
	for _, want := range []string{"sha256:1", "sha256:2"} {
		r.nomad.files["web/"+translate.ImageFile] = want
		r.follows(pod, entry("running", tasks{"web": running(0, epoch)}))
		if got := r.read(pod).Status.ContainerStatuses[0].ImageID; got != "sha256:1" {
			t.Errorf("image %q", got)
		}
	}
	r.follows(pod, entry("running", tasks{"web": running(1, epoch.Add(time.Minute))}))
	if got := r.read(pod).Status.ContainerStatuses[0].ImageID; got != "sha256:2" {
		t.Errorf("image of the next run %q", got)
	}
}

// A VM's command has the exit code that it told, and qemu's is only near it. It is
// kept when this process starts anew and the VM has told another.
func TestVMCommandEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		qemu    int
		told    string
		command bool
		code    int32
		message string
	}{
		"even":              {7, "6\nlast words", true, 6, "last words"},
		"odd":               {3, "3\n", true, 3, ""},
		"well":              {0, "0\nall done", true, 0, "all done"},
		"killed meanwhile":  {137, "6\nlast words", true, 137, ""},
		"told nothing":      {1, "", true, 1, ""},
		"without a command": {7, "6\nlast words", false, 7, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			node := r.nodes["n"].(testNode)
			node.profile.Runtimes = map[string]translate.Runtime{"vm": {Driver: driverQemu}}
			r.nodes["n"] = node
			pod := r.pod(func(p *corev1.Pod) {
				p.Spec.RuntimeClassName = new("vm")
				p.Spec.Containers[0].Command = nil
				if tc.command {
					p.Spec.Containers[0].Command = []string{"serve"}
				}
			})
			file := "web/" + translate.VMExit
			r.nomad.files[file] = tc.told
			at := epoch.Add(second)
			r.follows(pod, entry("pending", tasks{"web": crashed(tc.qemu, 1, epoch, at)}))
			if got := r.read(pod).Status.ContainerStatuses[0].State.Terminated; got == nil || got.ExitCode != tc.code || got.Message != tc.message {
				t.Fatalf("state %+v", got)
			}
			r.nomad.files[file] = ""
			r.restart()
			again := running(1, at.Add(second))
			again.Events = crashed(tc.qemu, 1, epoch, at).Events
			r.follows(pod, entry("running", tasks{"web": again}))
			if got := r.read(pod).Status.ContainerStatuses[0].LastTerminationState.Terminated; got == nil || got.ExitCode != tc.code || got.Message != tc.message {
				t.Errorf("last state %+v", got)
			}
		})
	}
}

// What qemu says when it cannot make the machine is the VM's last word.
func TestQemuFails(t *testing.T) {
	const words, screen = "qemu-system-x86_64: unsupported machine type\n", "login: \n"
	for name, tc := range map[string]struct {
		qemu    int
		told    string
		policy  corev1.TerminationMessagePolicy
		message string
	}{
		"fails":                  {qemu: 1, message: words},
		"fails before a command": {qemu: 1, told: "-", message: words},
		"ends with its command":  {qemu: 1, told: "1\nlast words", message: "last words"},
		"ends well":              {},
		"is killed":              {qemu: 137},
		"fails, log wanted":      {qemu: 1, policy: corev1.TerminationMessageFallbackToLogsOnError, message: screen + words},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			node := r.nodes["n"].(testNode)
			node.profile.Runtimes = map[string]translate.Runtime{"vm": {Driver: driverQemu}}
			r.nodes["n"] = node
			pod := r.pod(func(p *corev1.Pod) {
				p.Spec.RuntimeClassName = new("vm")
				p.Spec.Containers[0].TerminationMessagePolicy = tc.policy
				if p.Spec.Containers[0].Command = nil; tc.told != "" {
					p.Spec.Containers[0].Command = []string{"serve"}
				}
			})
			r.nomad.files["web/"+translate.VMExit], r.nomad.files["web/stdout"], r.nomad.files["web/stderr"] = tc.told, screen, words
			r.follows(pod, entry("pending", tasks{"web": crashed(tc.qemu, 1, epoch, epoch.Add(second))}))
			if got := r.read(pod).Status.ContainerStatuses[0].State.Terminated; got == nil || got.Message != tc.message {
				t.Errorf("state %+v", got)
			}
		})
	}
}

// What is told of an end stays told: a VM's is not told with qemu's code because its
// client did not answer for a moment, and not kept back for ever.
func TestVMCommandEndUnread(t *testing.T) {
	r := newRoom(t)
	node := r.nodes["n"].(testNode)
	node.profile.Runtimes = map[string]translate.Runtime{"vm": {Driver: driverQemu}}
	r.nodes["n"] = node
	pod := r.pod(func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new("vm")
		p.Spec.Containers[0].Command = []string{"serve"}
	})
	file := "web/" + translate.VMExit
	r.nomad.files[file] = unreachable
	end := entry("pending", tasks{"web": crashed(7, 1, epoch, epoch.Add(second))})
	r.clock.Step(2 * second)
	if _, err := r.follow(t.Context(), r.read(pod), end); err == nil || !strings.Contains(err.Error(), `"web" has ended`) {
		t.Errorf("%v", err)
	}
	if got := r.read(pod).Status.ContainerStatuses; len(got) != 0 {
		t.Errorf("told %+v", got)
	}
	r.nomad.files[file] = "6\n"
	r.follows(pod, end)
	if got := r.read(pod).Status.ContainerStatuses[0].State.Terminated; got == nil || got.ExitCode != 6 {
		t.Errorf("state %+v", got)
	}
	r.nomad.files[file] = unreachable
	r.restart()
	r.clock.Step(vmEndPatience)
	r.follows(pod, end)
}
