package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// What is killed under running pods loses none, doubles none, and restarts none
// that need not be. Nomad's server and client are two agents here, as in real
// clusters, and the containers live on without either.
//
// Nomad itself loses networks and ends of containers when its client's agent is
// killed while they come and go (docs/operations.md, "A client's agent that is
// killed"). That agent is therefore stopped in order until all pods have come to
// rest, and killed after that.
func TestChaos(t *testing.T) {
	h := newHybrid(t, ports()+200, func(o *devcluster.Options) {
		o.NoDocker, o.CacheDir, o.SplitNomad = false, "", true
		o.Configure = allowDiary
	})
	r := seed(t)
	for range number(t, "E2E_CHAOS", 1) {
		if !t.Run("round", func(t *testing.T) { h.round(t, r) }) {
			return // its remains would be in the way of the next one's
		}
	}
}

// round takes components away under one set of pods.
func (h *hybrid) round(t *testing.T, r *rand.Rand) {
	ns := namespace(t, h.kube)
	w := observe(t, h.kube, ns)
	s := newStage(t, h, ns, r, int(number(t, "E2E_PODS", 8)), true)
	steady := newSteadyPods(t, h, ns, r)
	pods := append(append([]*corev1.Pod{}, s.pods...), steady.pods...)
	h.chaos(t, r, 1, devcluster.NomadKubelet, devcluster.Nomad, devcluster.APIServer)
	h.awaitNetworks(t, pods)
	note(t, "all pods have their networks")
	s.begin(t)
	h.chaos(t, r, 4, devcluster.NomadKubelet, devcluster.Nomad, devcluster.NomadClient, devcluster.APIServer)
	t.Run("random", func(t *testing.T) { s.verify(t, h, 180*time.Second) })
	t.Run("steady", func(t *testing.T) { steady.verify(t, h, 60*time.Second) })
	h.awaitRest(t, pods)
	note(t, "all pods have come to rest")
	t.Run("client killed", func(t *testing.T) { h.clientKilled(t, steady) })
	// What was right once has to be right still.
	t.Run("random again", func(t *testing.T) { s.verify(t, h, 60*time.Second) })
	t.Run("steady again", func(t *testing.T) { steady.verify(t, h, 60*time.Second) })
	w.verify(t)
	for _, p := range pods {
		h.oneAllocation(t, p)
	}
	note(t, "the pods are deleted now")
	for _, p := range pods {
		remove(t, h.kube, p, nil)
	}
	for _, p := range pods {
		awaitGone(t, h.kube, p, 30*time.Second)
		awaitNoJob(t, h.nomad, jobID(h.Cluster, p), 30*time.Second)
	}
}

// chaos takes components away, mostly one at a time, now and then two, and each
// once before one is taken again.
func (h *hybrid) chaos(t *testing.T, r *rand.Rand, outages int, components ...string) {
	t.Helper()
	var deck []string
	for outages > 0 {
		if len(deck) == 0 {
			deck = slices.Clone(components)
			r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		n := 1
		if r.IntN(4) == 0 {
			n = min(2, outages, len(deck))
		}
		var g errgroup.Group
		for _, name := range deck[:n] {
			away := span(r, 2*time.Second)
			note(t, "%s is away for %s", name, away)
			if name == devcluster.NomadClient {
				h.stopInOrder(t, name)
			} else {
				h.kill(t, name)
			}
			g.Go(func() error {
				pause(t, away)
				return h.Start(t.Context(), name)
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		deck, outages = deck[n:], outages-n
		pause(t, span(r, 2*time.Second))
	}
}

// note logs what happens with the time, by which the components' logs are read.
func note(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Log(time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// stopInOrder lets a component take its time to end, where [devcluster.Cluster.Stop] would kill it.
func (h *hybrid) stopInOrder(t *testing.T, name string) {
	t.Helper()
	if err := h.Signal(name, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, name+" has ended", func() error {
		if h.Running(name) {
			return errors.New("it runs")
		}
		return nil
	})
}

// awaitNetworks waits until Nomad has set the network of every pod up: the end
// of its client's agent in the middle of that fails the pod.
func (h *hybrid) awaitNetworks(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		eventually(t, 120*time.Second, "pod "+p.Name+" has a network", func() error {
			a, err := h.allocation(p)
			if err == nil && a.NetworkStatus == nil {
				err = errors.New("allocation " + a.ID + " has none")
			}
			return err
		})
	}
}

// awaitRest waits until Nomad has written down what became of every task that
// has ended: until then its last event tells the end, and its state does not.
func (h *hybrid) awaitRest(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		eventually(t, 30*time.Second, "pod "+p.Name+" has come to rest", func() error {
			a, err := h.allocation(p)
			if err != nil {
				return err
			}
			for name, task := range a.TaskStates {
				if n := len(task.Events); n > 0 && task.Events[n-1].Type == api.TaskTerminated && task.State != "dead" {
					return fmt.Errorf("task %s has ended and is %s", name, task.State)
				}
			}
			return nil
		})
	}
}

// allocation is the only one of a pod.
func (h *hybrid) allocation(p *corev1.Pod) (*api.Allocation, error) {
	stubs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
	if err != nil {
		return nil, err
	}
	if len(stubs) != 1 {
		return nil, fmt.Errorf("%d allocations", len(stubs))
	}
	a, _, err := h.nomad.Allocations().Info(stubs[0].ID, nil)
	return a, err
}

// clientKilled kills the agent of Nomad's client and leaves it away until its
// heartbeats are missed. Its pods are told as not ready until it is back, and
// learn only then of what has changed meanwhile.
func (h *hybrid) clientKilled(t *testing.T, s *steadyPods) {
	t.Helper()
	p := s.pods[0]
	h.kill(t, devcluster.NomadClient)
	await(t, h.kube, p, 90*time.Second, "told as out of sight", func(p *corev1.Pod) bool {
		return conditionOf(p, corev1.PodReady).Reason == "NomadClientDisconnected"
	})
	s.configure(t, h)
	h.start(t, devcluster.NomadClient)
	await(t, h.kube, p, 60*time.Second, "ready", ready)
}

// span is a time below most, or now and then one several times as long: a new
// nomad-kubelet leads only when the lease of the old one has run out, and what
// happens before and after that differs.
func span(r *rand.Rand, most time.Duration) time.Duration {
	if r.IntN(5) == 0 {
		most *= 5
	}
	return time.Duration(r.Int64N(int64(most)))
}

// pause lets the pods go on for a while: how long is part of the experiment.
func pause(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// oneAllocation checks that Nomad ran the pod once, and that its status names
// that run.
func (h *hybrid) oneAllocation(t *testing.T, p *corev1.Pod) {
	t.Helper()
	a, err := h.allocation(p)
	if err != nil {
		t.Errorf("pod %s: %v", p.Name, err)
		return
	}
	got, err := h.kube.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil || got.UID != p.UID {
		t.Errorf("pod %s: %v", p.Name, err)
		return
	}
	if id := translate.AllocID(&got.Status); id != a.ID {
		t.Errorf("pod %s names allocation %q, Nomad has %s", p.Name, id, a.ID)
	}
}

// steadyPods are pods of all kinds that nothing but an outage could restart.
type steadyPods struct {
	pods []*corev1.Pod
	dirs []string
	// wrote is what the pods have written down, sorted, by kind; hooks run at least once.
	wrote map[string]string
}

// steadyKinds are what the pods have beside a container that runs on.
var steadyKinds = map[string]option{
	"sidecar": func(p *corev1.Pod) {
		side := container("side", steadyScript("side"))
		side.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		p.Spec.InitContainers = []corev1.Container{container("init", "echo init >> /diary/log"), side}
	},
	// One failure would be enough to restart it: a probe that could not be run is none.
	"probes": func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.StartupProbe, c.LivenessProbe, c.ReadinessProbe = patient(command("true")), patient(command("true")), patient(command("true"))
	},
	"web": func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Command[2] = "mkdir /www; echo ok > /www/ok; httpd -p 8080 -h /www; " + c.Command[2]
		get := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(8080)}}
		c.LivenessProbe, c.ReadinessProbe = patient(get), patient(get)
		c.LivenessProbe.InitialDelaySeconds = 5
	},
	"config": func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "conf", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}},
		}})
		c := &p.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "conf", MountPath: "/conf"})
		// What the container finds is in the diary, once at its start and whenever it changes.
		c.Command[2] = `echo c >> /diary/log; trap 'exit 0' TERM; while :; do v=$(cat /conf/v); [ "$v" = "$had" ] || echo "$v" >> /diary/log; had=$v; sleep 0.2; done`
	},
	"hook": func(p *corev1.Pod) {
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo post >> /diary/log; sleep 1"}},
		}}
	},
}

// steadyScript writes its start down and runs on.
func steadyScript(name string) string {
	return fmt.Sprintf("echo %s >> /diary/log; %s", name, idle)
}

// patient is a probe of which one failure is enough, on however busy a machine.
func patient(h corev1.ProbeHandler) *corev1.Probe {
	p := everySecond(h)
	p.TimeoutSeconds = 10
	return p
}

func newSteadyPods(t *testing.T, h *hybrid, ns string, r *rand.Rand) *steadyPods {
	t.Helper()
	if _, err := h.kube.CoreV1().ConfigMaps(ns).Create(t.Context(), steadyConfig("one"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := &steadyPods{wrote: map[string]string{"sidecar": "c init side", "probes": "c", "web": "c", "config": "c one", "hook": "c post"}}
	for _, kind := range slices.Sorted(maps.Keys(steadyKinds)) {
		dir, mount := diary(t)
		p := pod(kind, steadyScript("c"), restart(anyPolicy(r)), steadyKinds[kind], mount)
		s.pods, s.dirs = append(s.pods, create(t, h.kube, ns, p)), append(s.dirs, dir)
	}
	return s
}

// steadyConfig is what the pod config has as a volume.
func steadyConfig(v string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"v": v}}
}

// configure changes the volume of the pod config, which must have written down
// what it was: one that starts later never sees that.
func (s *steadyPods) configure(t *testing.T, h *hybrid) {
	t.Helper()
	if _, err := h.kube.CoreV1().ConfigMaps(s.pods[0].Namespace).Update(t.Context(), steadyConfig("two"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.wrote["config"] = "c one two"
}

func (s *steadyPods) verify(t *testing.T, h *hybrid, limit time.Duration) {
	t.Helper()
	for i, p := range s.pods {
		t.Run(p.Name, func(t *testing.T) {
			got := await(t, h.kube, p, limit, "ready", ready)
			for _, st := range append(got.Status.InitContainerStatuses, got.Status.ContainerStatuses...) {
				if st.RestartCount != 0 || st.LastTerminationState.Terminated != nil {
					t.Errorf("container %s was restarted:\n%s", st.Name, describe(got))
				}
			}
			want := s.wrote[p.Name]
			eventually(t, limit, "its diary says "+want, func() error {
				data, err := os.ReadFile(filepath.Join(s.dirs[i], "log"))
				if says := words(string(data), "post"); err == nil && says != want {
					err = fmt.Errorf("it says %q", says)
				}
				return err
			})
		})
	}
}

// words sorts those of a text, of which one counts but once.
func words(text, once string) string {
	all := slices.Sorted(slices.Values(strings.Fields(text)))
	for i := len(all) - 1; i > 0; i-- {
		if all[i] == once && all[i-1] == once {
			all = slices.Delete(all, i, i+1)
		}
	}
	return strings.Join(all, " ")
}
