package projection

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func TestRegistryMatch(t *testing.T) {
	auths := map[string]dockerAuth{
		"https://index.docker.io/v1/":       {Username: "hub"},
		"registry.example.com":              {Username: "registry"},
		"registry.example.com/team":         {Username: "team"},
		"https://registry.example.com:5000": {Username: "port"},
		"http://plain.example.com/v2/":      {Username: "plain"},
		"one.example.com/only/image":        {Username: "image"},
		"localhost":                         {Username: "local"},
	}
	for image, want := range map[string]string{
		"nginx":                                "hub",
		"nginx:1.25":                           "hub",
		"library/nginx":                        "hub",
		"docker.io/library/nginx":              "hub",
		"index.docker.io/library/nginx":        "hub",
		"registry.example.com/x":               "registry",
		"registry.example.com/team/x:1":        "team",
		"registry.example.com/teams/x":         "registry",
		"registry.example.com:5000/x":          "port",
		"registry.example.com:6000/x":          "", // another registry
		"plain.example.com/x":                  "plain",
		"one.example.com/only/image:1":         "image",
		"one.example.com/only/image@sha256:aa": "image",
		"one.example.com/only/images":          "",
		"other.example.com/x":                  "",
		"localhost/x":                          "local",
	} {
		got, ok := match(auths, image)
		if got.Username != want || ok != (want != "") {
			t.Errorf("%s: got %q (%v), want %q", image, got.Username, ok, want)
		}
	}
}

func TestRegistryItems(t *testing.T) {
	r := newRoom(t,
		sec("new", map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"a.example.com":{"username":"u\"1","password":"<p>` + hidden + `"}}}`)}),
		sec("old", map[string][]byte{corev1.DockerConfigKey: []byte(`{"b.example.com":{"auth":"dTI6cDI6eA=="}}`)}), // u2:p2:x
		sec("bad", map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": "` + hidden + `"}`)}),
		sec("none", nil),
	)
	pod := user("u", nil, []string{"new", "old", "bad", "none"})
	r.ready(pod)
	item := func(key, image, part string, secrets ...string) translate.Item {
		return translate.Item{Key: key, Registry: &translate.RegistryRef{Secrets: secrets, Image: image, Part: part}, Optional: true, Quoted: true}
	}
	all := []string{"none", "missing", "new", "old"}
	r.mustSync(pod, Fresh,
		item("u1", "a.example.com/x", "username", all...), item("p1", "a.example.com/x", "password", all...),
		item("u2", "b.example.com/x", "username", all...), item("p2", "b.example.com/x", "password", all...),
		item("public", "c.example.com/x", "username", all...))
	for key, want := range map[string]string{
		"u1": `"u\"1"`, "p1": `"\u003cp\u003e` + hidden + `"`, "u2": `"u2"`, "p2": `"p2:x"`, "public": `""`,
	} {
		if got := r.vars.items[path][key]; got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	_, err := r.sync(pod, Fresh, item("x", "a.example.com/x", "username", "bad"))
	if err == nil || !strings.Contains(err.Error(), "imagePullSecret ns/bad is not a valid docker configuration") {
		t.Errorf("%v", err)
	}
}
