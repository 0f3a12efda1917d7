package projection

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func TestReferences(t *testing.T) {
	key := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{key("pull"), key("")}
	pod.Spec.InitContainers = []corev1.Container{{EnvFrom: []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: key("c-init")}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: key("s-init")}},
	}}}
	pod.Spec.Containers = []corev1.Container{{Env: []corev1.EnvVar{
		{Name: "PLAIN", Value: "x"},
		{ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
		{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: key("c-env")}}},
		{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: key("s-env")}}},
		{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: key("same")}}},
	}}}
	pod.Spec.Volumes = []corev1.Volume{
		{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: key("same")}}},
		{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "same"}}},
		{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: key("c-proj")}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: key("s-proj")}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}},
		}}}},
	}
	pod.Annotations = map[string]string{translate.AnnotationVMUserDataFrom: "secret/s-vm/config"}
	var got []string
	for _, r := range references(pod) {
		got = append(got, fmt.Sprintf("%s %s/%s", r.kind, r.namespace, r.name))
	}
	want := []string{
		"configmap ns/c-env", "configmap ns/c-init", "configmap ns/c-proj", "configmap ns/same",
		"secret ns/pull", "secret ns/s-env", "secret ns/s-init", "secret ns/s-proj", "secret ns/s-vm", "secret ns/same",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestKeys(t *testing.T) {
	c := cm("c", map[string]string{"b": "1", "a": "2"})
	c.BinaryData = map[string][]byte{"bin": {0xff}}
	r := newRoom(t, c, sec("s", map[string][]byte{"k": []byte("v")}), cm("empty", nil))
	pod := user("u", []string{"c", "gone", "empty"}, []string{"s", "gone"})
	r.ready(pod)
	configMaps, binary, secrets := r.objects.Keys("u")
	if !slices.Equal(configMaps["c"], []string{"a", "b", "bin"}) || !slices.Equal(binary["c"], []string{"bin"}) || !slices.Equal(secrets["s"], []string{"k"}) {
		t.Errorf("%v %v %v", configMaps, binary, secrets)
	}
	if _, ok := configMaps["empty"]; !ok {
		t.Error("an empty ConfigMap is not a missing one")
	}
	if _, ok := configMaps["gone"]; ok {
		t.Error("a missing ConfigMap has keys")
	}
	if _, ok := secrets["gone"]; ok {
		t.Error("a missing Secret has keys")
	}
	if a, b, c := r.objects.Keys("other"); len(a)+len(b)+len(c) > 0 {
		t.Error("a pod that is not watched has keys")
	}
}

func TestWatchesAreSharedAndReleased(t *testing.T) {
	r := newRoom(t, cm("c", map[string]string{"k": "1"}), sec("s", nil))
	one, two := user("one", []string{"c"}, []string{"s"}), user("two", []string{"c"}, nil)
	if r.objects.Watch(t.Context(), one) {
		t.Error("ready before anything was read")
	}
	r.ready(one)
	r.ready(two)
	r.eventually("two watches", func() bool { return r.kube.watches.Load() == 2 })
	if n := r.kube.opened.Load(); n != 2 {
		t.Errorf("%d watches for two objects", n)
	}
	for len(r.told) > 0 {
		<-r.told
	}
	update := func(value string) {
		if _, err := r.kube.CoreV1().ConfigMaps("ns").Update(background, cm("c", map[string]string{"k": value}), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	update("2")
	r.awaits("one", "two")
	r.objects.Release("one")
	r.eventually("the Secret's watch goes on", func() bool { return r.kube.watches.Load() == 1 })
	update("3")
	r.awaits("two")
	if len(r.told) > 0 {
		t.Errorf("told of %s, which was released", <-r.told)
	}
	// Nothing in it that a pod sees has changed.
	same := cm("c", map[string]string{"k": "3"})
	same.Labels = map[string]string{"x": "y"}
	if _, err := r.kube.CoreV1().ConfigMaps("ns").Update(background, same, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	update("4")
	r.awaits("two")
	if len(r.told) > 0 {
		t.Error("told of a change of a label")
	}
	r.objects.Release("two")
	r.objects.Release("two")
	r.eventually("watches go on", func() bool { return r.kube.watches.Load() == 0 })
	if _, ok := r.objects.value(ref{configMap, "ns", "c"}, "k"); ok {
		t.Error("a released object is kept")
	}
}

func TestObjectAppearsAndGoes(t *testing.T) {
	r := newRoom(t)
	pod := user("u", []string{"c"}, nil)
	r.ready(pod)
	r.awaits("u")
	exists := func() bool {
		keys, _, _ := r.objects.Keys("u")
		return keys["c"] != nil
	}
	if exists() {
		t.Fatal("it exists already")
	}
	if _, err := r.kube.CoreV1().ConfigMaps("ns").Create(background, cm("c", map[string]string{"k": "v"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.awaits("u")
	if !exists() {
		t.Error("it does not exist")
	}
	if err := r.kube.CoreV1().ConfigMaps("ns").Delete(background, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.awaits("u")
	if exists() {
		t.Error("it still exists")
	}
}
