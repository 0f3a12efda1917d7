package bench

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
)

const (
	livePods = 10
	// liveP95 is well under the kubelet's own time, which looks at a volume again
	// about once a minute (syncFrequency).
	liveP95     = 10 * time.Second
	liveTimeout = 2 * time.Minute
)

// liveScript looks at the volume all liveStep, and marks each value of the key
// "value", and the keys "new1", "new2" and so on as they come.
const liveScript = `trap 'exit 0' TERM
n=1; seen=0
while :; do
  read -r v < /v/value; [ "$v" = "$seen" ] || { seen=$v; : > "/marks/$0.value$v"; }
  [ ! -e "/v/new$n" ] || { : > "/marks/$0.new$n"; n=$((n+1)); }
  sleep 0.1
done`

const liveStep = 100 * time.Millisecond

// liveSource is where the pods' volumes come from.
type liveSource struct {
	name string
	// each says that every pod has an object of its own.
	each   bool
	put    func(ctx context.Context, h *hybrid, ns, name string, data map[string]string, create bool) error
	volume func(name string) corev1.VolumeSource
}

// BenchmarkLiveUpdate takes the time from the API server's answer to an update
// of an object until running containers see the new content in their volumes.
func BenchmarkLiveUpdate(b *testing.B) {
	configMap := func(name string) corev1.VolumeSource {
		return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}
	}
	secret := func(name string) corev1.VolumeSource {
		return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}
	}
	for _, s := range []liveSource{
		{name: fmt.Sprintf("a ConfigMap in %d pods", livePods), put: putConfigMap, volume: configMap},
		{name: fmt.Sprintf("%d ConfigMaps, each in a pod", livePods), each: true, put: putConfigMap, volume: configMap},
		{name: fmt.Sprintf("a Secret in %d pods", livePods), put: putSecret, volume: secret},
	} {
		b.Run(s.name, func(b *testing.B) { hy.liveUpdates(b, s) })
	}
}

func putConfigMap(ctx context.Context, h *hybrid, ns, name string, data map[string]string, create bool) (err error) {
	o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if create {
		_, err = h.kube.CoreV1().ConfigMaps(ns).Create(ctx, o, metav1.CreateOptions{})
	} else {
		_, err = h.kube.CoreV1().ConfigMaps(ns).Update(ctx, o, metav1.UpdateOptions{})
	}
	return err
}

func putSecret(ctx context.Context, h *hybrid, ns, name string, data map[string]string, create bool) (err error) {
	o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
	if create {
		_, err = h.kube.CoreV1().Secrets(ns).Create(ctx, o, metav1.CreateOptions{})
	} else {
		_, err = h.kube.CoreV1().Secrets(ns).Update(ctx, o, metav1.UpdateOptions{})
	}
	return err
}

func (h *hybrid) liveUpdates(b *testing.B, s liveSource) {
	ns, m := h.namespace(b), h.marks(b)
	ctx, cancel := context.WithTimeout(b.Context(), manyTimeout)
	defer cancel()
	objects := []string{"shared"}
	if s.each {
		objects = nil
		for i := range livePods {
			objects = append(objects, podName(i))
		}
	}
	data := map[string]string{"value": "0"}
	for _, name := range objects {
		must(b, s.put(ctx, h, ns, name, data, true))
	}
	pods, err := h.create(ctx, ns, livePods, func(name string) *corev1.Pod { return livePod(s, m, name) })
	must(b, err)
	_, err = h.pods.await(ctx, pods)
	must(b, err)
	var changed, added []time.Duration
	for round := 1; round <= *liveRounds; round++ {
		data["value"] = fmt.Sprint(round)
		changed = append(changed, h.liveUpdate(b, s, m, ns, objects, data, "value"+data["value"])...)
		data[fmt.Sprintf("new%d", round)] = "x"
		added = append(added, h.liveUpdate(b, s, m, ns, objects, data, fmt.Sprintf("new%d", round))...)
	}
	must(b, h.removePods(b.Context(), ns))
	for _, what := range []string{"changed", "new"} {
		took := changed
		if what == "new" {
			took = added
		}
		p95 := figures.Quantile(took, 0.95)
		b.ReportMetric(float64(p95.Milliseconds()), "ms-"+what)
		report.Goal(b, fmt.Sprintf("%s: a %s key until seen in a running container", s.name, what), spread(took),
			fmt.Sprintf("worst %s of %d; looked at every %s", ms(figures.Quantile(took, 1)), len(took), ms(liveStep)),
			"p95 at most "+ms(liveP95), p95 <= liveP95)
		report.Detail(fmt.Sprintf("live, %s, %s key [ms]", s.name, what), msList(took))
	}
}

func livePod(s liveSource, m marks, name string) *corev1.Pod {
	p, object := pod(name), "shared"
	if s.each {
		object = name
	}
	m.mount(p)
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: s.volume(object)})
	c := &p.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/v"})
	c.Command = []string{"sh", "-c", liveScript, name}
	return p
}

// liveUpdate writes the objects and waits until every pod has seen it.
func (h *hybrid) liveUpdate(b *testing.B, s liveSource, m marks, ns string, objects []string, data map[string]string, mark string) []time.Duration {
	b.Helper()
	must(b, h.quiet(b.Context()))
	ctx, cancel := context.WithTimeout(b.Context(), liveTimeout)
	defer cancel()
	answered := make([]time.Time, len(objects))
	must(b, parallel(len(objects), func(i int) error {
		err := s.put(ctx, h, ns, objects[i], maps.Clone(data), false)
		answered[i] = time.Now()
		return err
	}))
	var wanted []string
	for i := range livePods {
		wanted = append(wanted, podName(i)+"."+mark)
	}
	seen, err := m.await(ctx, liveTimeout, wanted)
	must(b, err)
	took := make([]time.Duration, livePods)
	for i, name := range wanted {
		took[i] = seen[name].Sub(answered[i%len(objects)])
	}
	return took
}
