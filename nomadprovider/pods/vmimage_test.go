package pods

import (
	"testing"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// imageRoom has a VM pod whose image is a container's.
func imageRoom(t *testing.T) (*room, *corev1.Pod) {
	r := newRoom(t)
	c := config.Config{VirtualNodes: []config.VirtualNode{{Name: "n", CompanionImage: "companion"}}}
	c.Complete()
	r.nodes["n"] = testNode{profile: config.Profile(c.VirtualNodes[0])}
	return r, r.pod(func(p *corev1.Pod) {
		p.Spec.RuntimeClassName = new("nomad-vm")
		p.Spec.Containers[0].Image = "disks/debian:12"
	})
}

func waitsFor(t *testing.T, r *room, pod *corev1.Pod, reason, message string) {
	t.Helper()
	got := r.read(pod)
	w := got.Status.ContainerStatuses[0].State.Waiting
	if got.Status.Phase != corev1.PodPending || w == nil || w.Reason != reason || w.Message != message {
		t.Errorf("phase %s, %+v; want %s: %s", got.Status.Phase, w, reason, message)
	}
}

// The task that copies a disk out of a container image has its gate opened once the
// program is there that does it, and never before or again.
func TestDiskWaitsForProgram(t *testing.T) {
	r, pod := imageRoom(t)
	disk := &api.TaskState{State: "pending"}
	all := func(program *api.TaskState) tasks {
		return tasks{"web": {State: "pending"}, translate.CompanionTask: {State: "pending"}, translate.VMFetchTask: program, translate.VMDiskTask: disk}
	}
	r.follows(pod, entry("pending", all(&api.TaskState{State: "pending"})))
	r.nomad.take()
	r.follows(pod, entry("running", all(running(0, epoch))))
	r.asked()
	waitsFor(t, r, pod, "ContainerCreating", "the disk image is being fetched")
	at := epoch.Add(second)
	r.follows(pod, entry("running", all(crashed(1, 1, epoch, at))))
	r.asked()
	done := ended(0, epoch, at)
	r.follows(pod, entry("running", all(done)))
	r.asked("PUT " + gate(translate.VMDiskTask) + " open")
	r.follows(pod, entry("running", all(done)))
	r.asked()
	disk = running(0, at)
	r.restart()
	r.follows(pod, entry("running", all(done)))
	for _, what := range r.nomad.take() {
		if what == "PUT "+gate(translate.VMDiskTask)+" open" {
			t.Error("the gate of a task that runs is opened again")
		}
	}
	disk = ended(0, at, at)
	r.follows(pod, entry("running", all(done)))
	waitsFor(t, r, pod, "ContainerCreating", "")
}

// What a fetch has failed with is told as of an image that cannot be pulled, from its
// first try to its success.
func TestImageTrouble(t *testing.T) {
	r, pod := imageRoom(t)
	at := epoch.Add(second)
	failed := crashed(1, 1, epoch, at)
	all := tasks{"web": {State: "pending"}, translate.VMFetchTask: failed}
	r.nomad.files[translate.VMFetchTask+"/"+translate.TerminationLog] = "the server answers 404"
	r.clock.Step(2 * second)
	r.follows(pod, entry("pending", all))
	waitsFor(t, r, pod, "ErrImagePull", "the server answers 404")
	// It tries again, and nothing is known of it yet.
	failed.State, failed.StartedAt = "running", at.Add(second)
	r.follows(pod, entry("running", all))
	waitsFor(t, r, pod, "ErrImagePull", "the server answers 404")
	again := crashed(1, 2, at.Add(second), at.Add(2*second))
	all[translate.VMFetchTask] = again
	r.follows(pod, entry("pending", all))
	waitsFor(t, r, pod, "ImagePullBackOff", `Back-off pulling image "disks/debian:12": the server answers 404`)
	all[translate.VMFetchTask] = ended(0, at, at)
	r.follows(pod, entry("running", all))
	waitsFor(t, r, pod, "ContainerCreating", "")
}

// A container image that Nomad gives up is tried again by the next job.
func TestDiskUnstartable(t *testing.T) {
	r, pod := imageRoom(t)
	for _, task := range []string{translate.VMFetchTask, translate.VMDiskTask} {
		states := tasks{"web": {State: "dead"}, task: {State: "dead", Failed: true, Events: []*api.TaskEvent{
			{Type: api.TaskDriverFailure, DisplayMessage: "Failed to pull `disks/debian:12`: not found"},
		}}}
		if !unstartable(pod, newAlloc("a1", "failed", states)) || unstartable(pod, newAlloc("a1", "running", states)) {
			t.Errorf("%s: not as it should be", task)
		}
	}
	r.follows(pod, entry("failed", tasks{"web": {State: "dead"}, translate.VMDiskTask: {State: "dead", Failed: true, Events: []*api.TaskEvent{
		{Type: api.TaskDriverFailure, DisplayMessage: "Failed to pull `disks/debian:12`: not found"},
	}}}))
	waitsFor(t, r, pod, "ErrImagePull", "Failed to pull `disks/debian:12`: not found")
}
