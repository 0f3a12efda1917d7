package companion

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func words(list ...string) (out []Value) {
	for _, w := range list {
		out = append(out, Value{{Data: []byte(w)}})
	}
	return out
}

// A shell that runs the files of a program gives it its environment and words as
// they are.
func TestProgram(t *testing.T) {
	odd := "a 'b' \"c\" $d `e` \\ \n$(false)\nend "
	dir := t.TempDir()
	p := &Program{
		Env: []Variable{
			{"PLAIN", Value{{Data: []byte(odd)}}}, {"odd-name.1", Value{{Data: []byte(odd)}}}, {"EMPTY", Value{}},
			{"UID", Value{{Data: []byte("1000")}}}, // bash would end for setting it
			{"ADDRESS", Value{{Data: []byte("at ")}, {Run: "POD_IP"}, {Data: []byte(":80")}}},
		},
		Words: words("env", "LAST="+odd, "sh", "-c", `pwd; tr '\0' '|' </proc/$$/environ; exit 7`), Dir: dir + "/it's", Message: "/dev/last",
	}
	getenv := func(name string) string { return map[string]string{"POD_IP": "10.0.0.1"}[name] }
	got := map[string]string{}
	for _, f := range p.files(getenv) {
		got[f.File] = string(f.Data)
		if err := os.WriteFile(filepath.Join(dir, f.File), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := "PLAIN=" + odd + "\x00odd-name.1=" + odd + "\x00EMPTY=\x00UID=1000\x00ADDRESS=at 10.0.0.1:80\x00"; got["environ"] != want {
		t.Errorf("environ %q", got["environ"])
	}
	for name, sh := range map[string][]string{"sh": {"sh"}, "busybox": {"busybox", "sh"}, "bash": {"bash", "--posix"}} {
		cmd := exec.Command(sh[0], append(sh[1:], filepath.Join(dir, "command"))...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.Output()
		if x, _ := err.(*exec.ExitError); x == nil || x.ExitCode() != 7 {
			t.Fatalf("%s: %v %s", name, err, out)
		}
		first, rest, _ := strings.Cut(string(out), "\n")
		vars := strings.Split(rest, "|")
		for _, want := range []string{"LAST=" + odd, "PLAIN=" + odd, "odd-name.1=" + odd, "EMPTY=", "ADDRESS=at 10.0.0.1:80"} {
			if !slices.Contains(vars, want) {
				t.Errorf("%s: %q is not in %q", name, want, vars)
			}
		}
		if first != dir+"/it's" {
			t.Errorf("%s: in %q", name, first)
		}
		out, err = exec.Command(sh[0], append(sh[1:], "-c", `. "$1"; printf %s "$PLAIN"`, "sh", filepath.Join(dir, "env"))...).Output()
		if err != nil || string(out) != odd {
			t.Errorf("%s: env file: %v %q", name, err, out)
		}
	}
	if strings.Contains(got["env"], "odd-name") || !strings.HasPrefix(got["command"], "#message /dev/last\n") {
		t.Errorf("%q %q", got["env"], got["command"])
	}
	p.Words = nil
	for _, f := range p.files(getenv) {
		if f.File == "command" {
			t.Error("a command without words")
		}
	}
}
