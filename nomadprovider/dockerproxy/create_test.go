package dockerproxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// post sends a request for a container and returns the engine's view of it, or
// the error.
func post(t *testing.T, c *http.Client, body string) (status int, answer string) {
	t.Helper()
	resp, err := c.Post("http://x/v1.41/containers/create?name=n", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(data))
}

// The engine of these tests calls an image's user what follows the image's last
// slash.
func TestUserOfTheImage(t *testing.T) {
	_, _, c := start(t)
	nonRoot := `"Labels":{"nomad-kubelet.io/run-as-non-root":"container: c"}`
	group := `"Labels":{"nomad-kubelet.io/run-as-group":"3000"}`
	for name, r := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"not asked for":        {`{"Image":"r/a/","X":[1]}`, 200, `{"Image":"r/a/","X":[1]}`},
		"root by default":      {`{"Image":"r/a/",` + nonRoot + `}`, 404, `{"message":"container has runAsNonRoot and image will run as root (container: c)"}`},
		"root":                 {`{"Image":"r/a/0:5",` + nonRoot + `}`, 404, `{"message":"container has runAsNonRoot and image will run as root (container: c)"}`},
		"a name":               {`{"Image":"r/a/www",` + nonRoot + `}`, 404, `{"message":"container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (container: c)"}`},
		"another":              {`{"Image":"r/a/7:5",` + nonRoot + `}`, 200, `{"Image":"r/a/7:5",` + nonRoot + `}`},
		"a user is given":      {`{"Image":"r/a/0","User":"9",` + nonRoot + `}`, 200, `{"Image":"r/a/0","User":"9",` + nonRoot + `}`},
		"group":                {`{"Image":"r/a/www:www",` + group + `}`, 200, `{"Image":"r/a/www:www",` + group + `,"User":"www:3000"}`},
		"group of root":        {`{"Image":"r/a/",` + group + `}`, 200, `{"Image":"r/a/",` + group + `,"User":"0:3000"}`},
		"image that is not":    {`{"Image":"none",` + group + `}`, 404, `{"message":"image none: 404 Not Found: No such image"}`},
		"what cannot be read":  {`{`, 400, `{"message":"read the request for a container: unexpected end of JSON input\nunexpected end of JSON input"}`},
		"user beyond integers": {`{"Image":"r/a/99999999999999999999",` + nonRoot + `}`, 404, `{"message":"container has runAsNonRoot and image has non-numeric user (99999999999999999999), cannot verify user is non-root (container: c)"}`},
	} {
		if status, got := post(t, c, r.body); status != r.status || got != r.want {
			t.Errorf("%s: %d %s, want %d %s", name, status, got, r.status, r.want)
		}
	}
}

// The image's ID is left beside the task's local directory.
func TestImageIsTold(t *testing.T) {
	_, _, c := start(t)
	task := t.TempDir()
	for _, r := range []struct{ image, want string }{{"r/a/7", "sha256:r/a/7"}, {"pulled", "pulled@sha256:1"}} {
		body := fmt.Sprintf(`{"Image":%q,"HostConfig":{"Binds":["/x/local:/elsewhere","%s/local:/local:z"]}}`, r.image, task)
		if status, got := post(t, c, body); status != http.StatusOK || got != body {
			t.Errorf("%d %s", status, got)
		}
		if got, err := os.ReadFile(filepath.Join(task, ImageFile)); err != nil || string(got) != r.want {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestStdinOnce(t *testing.T) {
	_, _, c := start(t)
	want := `{"Image":"i","Labels":{"nomad-kubelet.io/stdin-once":"true"},"StdinOnce":true}`
	if status, got := post(t, c, strings.Replace(want, "true}", "false}", 1)); status != http.StatusOK || got != want {
		t.Errorf("%d %s", status, got)
	}
}

// A volume takes the place of the driver's mount, and nothing else changes.
func TestOwnMounts(t *testing.T) {
	_, _, c := start(t)
	body := `{"HostConfig":{"Binds":["/v:/etc/resolv.conf"],"Mounts":[{"Target":"/etc/hosts","X":1},{"Target":"/etc/resolv.conf"}]},` +
		`"Image":"i","Labels":{"nomad-kubelet.io/own-mounts":"/a,/etc/resolv.conf"}}`
	want := `{"HostConfig":{"Binds":["/v:/etc/resolv.conf"],"Mounts":[{"Target":"/etc/hosts","X":1}]},` +
		`"Image":"i","Labels":{"nomad-kubelet.io/own-mounts":"/a,/etc/resolv.conf"}}`
	if status, got := post(t, c, body); status != http.StatusOK || got != want {
		t.Errorf("%d %s", status, got)
	}
	other := `{"HostConfig":{"Mounts":[{"Target":"/etc/resolv.conf"}]},"Labels":null}`
	if status, got := post(t, c, other); status != http.StatusOK || got != other {
		t.Errorf("%d %s", status, got)
	}
}

func TestVersionIsMarked(t *testing.T) {
	_, _, c := start(t)
	for _, path := range []string{"/version", "/v1.41/version"} {
		var got map[string]any
		if err := json.NewDecoder(get(t, c, "GET", path).Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got["Version"] != "20.10.24"+VersionMark || got["Os"] != "linux" {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// Both sides of what nomad-kubelet and the proxy say to each other.
func TestSameWords(t *testing.T) {
	if LabelNonRoot != translate.LabelNonRoot || LabelGroup != translate.LabelGroup || LabelOwnMounts != translate.LabelOwnMounts || LabelStdinOnce != translate.LabelStdinOnce || LabelSubPaths != translate.LabelSubPaths ||
		ImageFile != translate.ImageFile || VersionMark != translate.DockerProxyMark {
		t.Error("translate says it in other words")
	}
}
