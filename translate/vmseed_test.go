package translate

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestUserDataFrom(t *testing.T) {
	for text, want := range map[string]UserDataRef{
		"secret/s":      {Secret: true, Name: "s", Key: "user-data"},
		"configmap/c/k": {Name: "c", Key: "k"},
		"secret/s/":     {},
		"secret/":       {},
		"secret":        {},
		"pod/p":         {},
		"secret/s/k/x":  {},
		"":              {},
	} {
		pod := &corev1.Pod{}
		pod.Annotations = map[string]string{AnnotationVMUserDataFrom: text}
		got, ok := UserDataFrom(pod)
		if ok != (want != UserDataRef{}) || ok && got != want {
			t.Errorf("%q: %+v, %v", text, got, ok)
		}
	}
}
