package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

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
func TestChaos(t *testing.T) {
	h := newHybrid(t, ports()+200, func(o *devcluster.Options) {
		o.NoDocker, o.CacheDir, o.SplitNomad = false, "", true
		o.Configure = allowDiary
	})
	r := seed(t)
	ns := namespace(t, h.kube)
	w := observe(t, h.kube, ns)
	s := newStage(t, h, ns, r, int(number(t, "E2E_PODS", 10)), true)
	steady := newSteadyPods(t, h, ns, r)
	pods := append(append([]*corev1.Pod{}, s.pods...), steady.pods...)
	kills := int(number(t, "E2E_CHAOS", 8))
	h.chaos(t, r, kills/3, devcluster.NomadKubelet, devcluster.Nomad, devcluster.APIServer)
	h.settleNetworks(t, pods)
	s.begin(t)
	s.outages = h.chaos(t, r, kills-kills/3, devcluster.NomadKubelet, devcluster.Nomad, devcluster.NomadClient, devcluster.APIServer)
	t.Run("random", func(t *testing.T) { s.verify(t, h, 180*time.Second) })
	t.Run("steady", func(t *testing.T) { steady.verify(t, h, 60*time.Second) })
	// What was right once has to be right still.
	t.Run("random again", func(t *testing.T) { s.verify(t, h, 10*time.Second) })
	for _, what := range w.wrong() {
		t.Error(what)
	}
	for _, p := range pods {
		h.oneAllocation(t, p)
	}
	for _, p := range pods {
		remove(t, h.kube, p, nil)
	}
	for _, p := range pods {
		awaitGone(t, h.kube, p, 30*time.Second)
		awaitNoJob(t, h.nomad, jobID(h.Cluster, p), 30*time.Second)
	}
}

// settleNetworks has Nomad's client write down the networks of all pods. Until
// then, which takes up to a minute, its agent cannot be killed without the pods:
// Nomad 1.11 takes a network that is there and not written down for an error
// (client/allocrunner/network_hook.go, Prerun), and writes it down once a minute
// and when the agent is stopped in order (client/client.go, stateSnapshotIntv).
func (h *hybrid) settleNetworks(t *testing.T, pods []*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		eventually(t, 120*time.Second, "pod "+p.Name+" has a network", func() error {
			stubs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
			if err != nil || len(stubs) == 0 {
				return fmt.Errorf("%d allocations: %v", len(stubs), err)
			}
			a, _, err := h.nomad.Allocations().Info(stubs[0].ID, nil)
			if err == nil && a.NetworkStatus == nil {
				err = errors.New("allocation " + a.ID + " has no network")
			}
			return err
		})
	}
	if err := h.Stop(t.Context(), devcluster.NomadClient); err != nil {
		t.Fatal(err)
	}
	h.start(t, devcluster.NomadClient)
}

// chaos kills some of the victims, mostly one at a time, now and then two, and
// returns the outages of the agent that runs the pods.
func (h *hybrid) chaos(t *testing.T, r *rand.Rand, kills int, victims ...string) (outages []outage) {
	t.Helper()
	for kills > 0 {
		r.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		n := 1
		if kills > 1 && r.IntN(4) == 0 {
			n = 2
		}
		var g errgroup.Group
		for _, victim := range victims[:n] {
			away := span(r, 3*time.Second)
			t.Logf("%s: kill %s for %s", time.Now().Format(time.TimeOnly), victim, away)
			begin := time.Now()
			h.kill(t, victim)
			if victim == devcluster.NomadClient {
				outages = append(outages, outage{begin, time.Now().Add(away)})
			}
			g.Go(func() error {
				pause(t, away)
				return h.Start(t.Context(), victim)
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		kills -= n
		pause(t, span(r, 4*time.Second))
	}
	return outages
}

// span is a time below most, or now and then one several times as long: a new
// nomad-kubelet takes the lease's 15 s to lead, and what happens before and after
// that differs.
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
	allocs, _, err := h.nomad.Jobs().Allocations(jobID(h.Cluster, p), true, nil)
	if err != nil || len(allocs) != 1 {
		t.Errorf("pod %s has %d allocations: %v", p.Name, len(allocs), err)
		return
	}
	got, err := h.kube.CoreV1().Pods(p.Namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil || got.UID != p.UID {
		t.Errorf("pod %s: %v", p.Name, err)
		return
	}
	if id := translate.AllocID(&got.Status); id != allocs[0].ID {
		t.Errorf("pod %s names allocation %q, Nomad has %s", p.Name, id, allocs[0].ID)
	}
}

// steadyPods are pods of all kinds that nothing but an outage could restart.
type steadyPods struct {
	pods []*corev1.Pod
	dirs []string
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

// steadyDiary is what the pods write down, sorted; hooks run at least once.
var steadyDiary = map[string]string{"sidecar": "c init side", "probes": "c", "web": "c", "config": "c one two", "hook": "c post"}

// steadyScript writes its start down and runs on.
func steadyScript(name string) string {
	return fmt.Sprintf(`echo %s >> /diary/log; trap 'exit 0' TERM; while :; do sleep 0.2; done`, name)
}

// patient is a probe of which one failure is enough, on however busy a machine.
func patient(h corev1.ProbeHandler) *corev1.Probe {
	p := everySecond(h)
	p.TimeoutSeconds = 10
	return p
}

func newSteadyPods(t *testing.T, h *hybrid, ns string, r *rand.Rand) *steadyPods {
	t.Helper()
	conf := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"v": "one"}}
	if _, err := h.kube.CoreV1().ConfigMaps(ns).Create(t.Context(), conf, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := &steadyPods{}
	for _, kind := range []string{"sidecar", "probes", "web", "config", "hook"} {
		dir, mount := diary(t)
		p := pod(kind, steadyScript("c"), restart(anyPolicy(r)), steadyKinds[kind], mount)
		s.pods, s.dirs = append(s.pods, create(t, h.kube, ns, p)), append(s.dirs, dir)
	}
	return s
}

func (s *steadyPods) verify(t *testing.T, h *hybrid, limit time.Duration) {
	t.Helper()
	conf := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"v": "two"}}
	if _, err := h.kube.CoreV1().ConfigMaps(s.pods[0].Namespace).Update(t.Context(), conf, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, p := range s.pods {
		t.Run(p.Name, func(t *testing.T) {
			got := await(t, h.kube, p, limit, "ready", ready)
			for _, st := range append(got.Status.InitContainerStatuses, got.Status.ContainerStatuses...) {
				if st.RestartCount != 0 || st.LastTerminationState.Terminated != nil {
					t.Errorf("container %s was restarted:\n%s", st.Name, describe(got))
				}
			}
			want := steadyDiary[p.Name]
			eventually(t, limit, "its diary says "+want, func() error {
				if says := words(read(t, s.dirs[i]), "post"); says != want {
					return fmt.Errorf("it says %q", says)
				}
				return nil
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
