package projection

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// dockerHub is the name under which docker keeps the credentials of its hub.
const dockerHub = "index.docker.io"

type dockerAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"`
}

// registry finds the credentials of an image in the pod's pull secrets; empty
// when none has them, which is no error, as the image may be public.
func (w *Writer) registry(pod *corev1.Pod, r *translate.RegistryRef) (string, error) {
	for _, name := range r.Secrets {
		auths, err := w.auths(pod.Namespace, name)
		if err != nil {
			return "", err
		}
		if a, ok := match(auths, r.Image); ok {
			if r.Part == "username" {
				return a.Username, nil
			}
			return a.Password, nil
		}
	}
	return "", nil
}

func (w *Writer) auths(namespace, name string) (map[string]dockerAuth, error) {
	at := ref{secret, namespace, name}
	auths := map[string]dockerAuth{}
	var err error
	if raw, ok := w.objects.value(at, corev1.DockerConfigJsonKey); ok {
		var file struct {
			Auths map[string]dockerAuth `json:"auths"`
		}
		err = json.Unmarshal(raw, &file)
		auths = file.Auths
	} else if raw, ok := w.objects.value(at, corev1.DockerConfigKey); ok {
		err = json.Unmarshal(raw, &auths)
	}
	if err != nil {
		// The parser's own message may quote the secret.
		return nil, fmt.Errorf("imagePullSecret %s/%s is not a valid docker configuration", namespace, name)
	}
	for k, a := range auths {
		if a.Username == "" && a.Auth != "" {
			if plain, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
				a.Username, a.Password, _ = strings.Cut(string(plain), ":")
				auths[k] = a
			}
		}
	}
	return auths, nil
}

// match picks the entry whose registry and path are the longest prefix of the
// image (pkg/credentialprovider/keyring.go, without its globs).
func match(auths map[string]dockerAuth, image string) (dockerAuth, bool) {
	host, rest, ok := strings.Cut(image, "/")
	switch {
	case ok && host == "docker.io":
		host = dockerHub
	case !ok || !strings.ContainsAny(host, ".:") && host != "localhost":
		host, rest = dockerHub, image
	}
	full := host + "/" + rest
	var best dockerAuth
	length := -1
	for key, a := range auths {
		k := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
		k = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(k, "/"), "/v1"), "/v2")
		if k == "docker.io" {
			k = dockerHub
		}
		if covers(k, full) && len(k) > length {
			best, length = a, len(k)
		}
	}
	return best, length >= 0
}

// covers says whether the image lies in the registry or at the path. A port is
// part of the registry's name: one on another port is another registry.
func covers(at, image string) bool {
	rest, ok := strings.CutPrefix(image, at)
	if !ok {
		return false
	}
	return rest == "" || rest[0] == '/' || strings.Contains(at, "/") && (rest[0] == ':' || rest[0] == '@')
}
