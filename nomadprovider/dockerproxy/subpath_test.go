package dockerproxy

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A pod that puts a link into its volume does not get at the client by a sub-path.
func TestSubPaths(t *testing.T) {
	_, _, c := start(t)
	vol := filepath.Join(t.TempDir(), "vol")
	for _, dir := range []string{"a/b", "..data1"} {
		if err := os.MkdirAll(filepath.Join(vol, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"out": "/", "a/up": "../..", "in": "a/b", "nowhere": "/not/there", "key": "..data/key", "..data": "..data1"} {
		if err := os.Symlink(to, filepath.Join(vol, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(vol, "..data1/key"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{
		"a/b": "", "in": "", "key": "", "new/dir": "", "in/new": "",
		"out": "out of its volume", "out/etc": "out of its volume", "out/new/dir": "out of its volume", "a/up": "out of its volume",
		"nowhere": "leads nowhere", "nowhere/x": "leads nowhere",
	} {
		depth := strings.Count(sub, "/") + 1
		source := filepath.Join(vol, sub)
		for _, host := range []string{
			fmt.Sprintf(`{"Binds":["/other:/x:ro","%s:/m:ro"]}`, source),
			fmt.Sprintf(`{"Mounts":[{"Type":"bind","Target":"/m","Source":%q}]}`, source),
		} {
			body := fmt.Sprintf(`{"HostConfig":%s,"Image":"i","Labels":{%q:"{\"/m\":%d}"}}`, host, LabelSubPaths, depth)
			status, got := post(t, c, body)
			if want == "" && status != http.StatusOK || want != "" && (status == http.StatusOK || !strings.Contains(got, want)) {
				t.Errorf("%s: %d %s, want %q", sub, status, got, want)
			}
		}
	}
	if status, _ := post(t, c, fmt.Sprintf(`{"HostConfig":{},"Image":"i","Labels":{%q:"{\"/m\":1}"}}`, LabelSubPaths)); status == http.StatusOK {
		t.Error("a mount that is not there is let pass")
	}
}
