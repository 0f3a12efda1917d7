package translate

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// liveNomad is the Nomad that $NOMAD_ADDR names, with docker and an image
// busybox:1.36; without it the tests here are skipped. $COMPANION_IMAGE is the
// companion's, if there is one.
func liveNomad(t *testing.T) *api.Client {
	t.Helper()
	if os.Getenv("NOMAD_ADDR") == "" {
		t.Skip("NOMAD_ADDR is not set")
	}
	c, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLiveGoldensAreValid has Nomad's server check every golden job.
func TestLiveGoldensAreValid(t *testing.T) {
	nomad := liveNomad(t)
	for _, dir := range cases(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			pod, in := readCase(t, dir)
			res, err := Job(pod, in)
			if err != nil {
				t.Skip("refused")
			}
			got, _, err := nomad.Jobs().Validate(res.Job, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.Error != "" || len(got.ValidationErrors) > 0 {
				t.Errorf("%s %q", got.Error, got.ValidationErrors)
			}
		})
	}
}

// nasty are values that have been known to be changed on the way into a process.
var nasty = map[string]string{
	"EMPTY": "", "QUOTES": `"a" 'b' \c`, "LINES": "a\nb\r\n\tc", "HCL": "${HOME} $${X} %{ if true } $$", "TEMPLATE": `{{ "x" }} }} {{`,
	"MARKUP": "<a>&</a>", "UNICODE": "grüße \u2028 日本 😀", "HASH": " a # b ", "EQUALS": "a=b=c", "DOLLARS": "a$", "CONTROL": "\x01\x7f",
}

func TestLiveValues(t *testing.T) {
	nomad := liveNomad(t)
	in := testInputs()
	in.Cluster = "live"
	in.Node.Region = ""
	in.Node.CompanionImage = "" // what is proved here are the templates
	pod := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, DNSPolicy: corev1.DNSDefault}}
	pod.Namespace, pod.Name, pod.UID = "default", "values", types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000000", time.Now().UnixNano()&0xffffffff))
	c := corev1.Container{Name: "c", Image: "busybox:1.36", Command: []string{"sh", "-c"}}
	secret := map[string]string{}
	for _, name := range sortedKeys(nasty) {
		c.Env = append(c.Env, corev1.EnvVar{Name: "LIT_" + name, Value: strings.ReplaceAll(nasty[name], "$", "$$")})
		c.Env = append(c.Env, corev1.EnvVar{Name: "SEC_" + name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: name,
		}}})
		c.Env = append(c.Env, corev1.EnvVar{Name: "MIX_" + name, Value: "<$(SEC_" + name + ")$(LIT_" + name + ")$(POD_IP)>"})
		// Names that Nomad's environment files do not take.
		c.Env = append(c.Env, corev1.EnvVar{Name: "SEC-" + name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: name,
		}}})
		c.Env = append(c.Env, corev1.EnvVar{Name: "MIX2_" + name, Value: "<$(SEC-" + name + ")>"})
		secret[name] = nasty[name]
	}
	const odd = "$1 [o]dd"
	c.Env = append(c.Env, corev1.EnvVar{Name: odd, Value: "a$$b"})
	c.Env = append([]corev1.EnvVar{
		{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
		{Name: "HOST_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}},
	}, c.Env...)
	// NUL-separated: argument count, arguments, then variables by name.
	script := `printf '%s\0' "$#" "$@"; printf 'POD_IP=%s\0HOST_IP=%s\0' "$POD_IP" "$HOST_IP"; `
	var args []string
	for _, name := range sortedKeys(nasty) {
		args = append(args, strings.ReplaceAll(nasty[name], "$", "$$"), "[$(SEC_"+name+")$$(X)$(SEC_"+name+")]", "$$$(POD_IP)")
		for _, kind := range []string{"LIT_", "SEC_", "MIX_"} {
			script += `printf '` + kind + name + `=%s\0' "$` + kind + name + `"; `
		}
	}
	script += `cat /etc/s/BIN | md5sum; cat /etc/s/LINES; echo; printf '\0ENVIRON\0'; cat /proc/$$/environ; sleep 1; exit 0`
	c.Args = append([]string{strings.ReplaceAll(script, "$", "$$"), "sh"}, args...)
	c.VolumeMounts = []corev1.VolumeMount{{Name: "s", MountPath: "/etc/s"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	secret["BIN"] = string(binary)
	pod.Spec.Containers = []corev1.Container{c}
	in.Secrets["s"] = sortedKeys(secret)

	alloc := startLive(t, nomad, pod, in, secret)
	out := finalLog(t, nomad, alloc, "c")
	head, environ, _ := strings.Cut(out, "\x00ENVIRON\x00")
	parts := strings.Split(head, "\x00")
	n := len(args)
	if parts[0] != fmt.Sprint(n) {
		t.Fatalf("%s arguments, want %d", parts[0], n)
	}
	var podIP string
	for _, p := range parts {
		if v, ok := strings.CutPrefix(p, "POD_IP="); ok {
			podIP = v
		}
	}
	if podIP == "" || podIP != alloc.NetworkStatus.Address {
		t.Errorf("POD_IP is %q, the allocation has %q", podIP, alloc.NetworkStatus.Address)
	}
	var want []string
	for _, name := range sortedKeys(nasty) {
		want = append(want, nasty[name], "["+nasty[name]+"$(X)"+nasty[name]+"]", "$"+podIP)
	}
	if diff := cmp.Diff(want, parts[1:1+n]); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	var wantEnv []string
	for _, name := range sortedKeys(nasty) {
		v := nasty[name]
		wantEnv = append(wantEnv, "LIT_"+name+"="+v, "SEC_"+name+"="+v, "MIX_"+name+"=<"+v+v+podIP+">")
	}
	if diff := cmp.Diff(wantEnv, parts[1+n+2:len(parts)-1]); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if want := odd + "=a$b"; !slices.Contains(strings.Split(environ, "\x00"), want) {
		t.Errorf("the environment has no %q", want)
	}
	for _, name := range sortedKeys(nasty) {
		for _, want := range []string{"SEC-" + name + "=" + nasty[name], "MIX2_" + name + "=<" + nasty[name] + ">"} {
			if !slices.Contains(strings.Split(environ, "\x00"), want) {
				t.Errorf("the environment has no %q", want)
			}
		}
	}
	const md5sum = "e2c865db4162bed963bfaa9ef6ac18f0"
	if files := parts[len(parts)-1]; !strings.HasPrefix(files, md5sum) || !strings.HasSuffix(files, nasty["LINES"]+"\n") {
		t.Errorf("files are %q", files)
	}
}

// startLive registers the pod's job, fills its Variable, and returns the
// allocation once it has an address.
func startLive(t *testing.T, nomad *api.Client, pod *corev1.Pod, in Inputs, secret map[string]string) *api.Allocation {
	t.Helper()
	res, err := Job(pod, in)
	if err != nil {
		t.Fatal(err)
	}
	id := *res.Job.ID
	if len(res.Items) > 0 {
		v := &api.Variable{Path: VariablePath(id), Items: api.VariableItems{}}
		for _, it := range res.Items {
			switch {
			case it.Secret != nil && it.Quoted:
				quoted, _ := json.Marshal(secret[it.Secret.Key])
				v.Items[it.Key] = string(quoted)
			case it.Registry != nil:
				v.Items[it.Key] = `"pa\"ss # $ ` + "\\u0041" + `"`
			case it.Secret != nil:
				v.Items[it.Key] = base64.StdEncoding.EncodeToString([]byte(secret[it.Secret.Key]))
			default:
				v.Items[it.Key] = ""
			}
		}
		if _, _, err := nomad.Variables().Update(v, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := nomad.Jobs().Register(res.Job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, _, err := nomad.Jobs().Deregister(id, true, nil); err != nil {
			t.Error(err)
		}
		vars, _, _ := nomad.Variables().PrefixList(VariablePath(id), nil)
		for _, v := range vars {
			if _, err := nomad.Variables().Delete(v.Path, nil); err != nil {
				t.Error(err)
			}
		}
	})
	return waitAlloc(t, nomad, id, func(a *api.Allocation) bool {
		return a.NetworkStatus != nil || !slices.Contains([]string{"pending"}, a.ClientStatus)
	})
}

func waitAlloc(t *testing.T, nomad *api.Client, job string, ready func(*api.Allocation) bool) *api.Allocation {
	t.Helper()
	var last *api.Allocation
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		stubs, _, err := nomad.Jobs().Allocations(job, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(stubs) == 0 {
			continue
		}
		if last, _, err = nomad.Allocations().Info(stubs[0].ID, nil); err != nil {
			t.Fatal(err)
		}
		if ready(last) {
			return last
		}
	}
	var states []byte
	if last != nil {
		states, _ = json.MarshalIndent(last.TaskStates, "", " ")
	}
	t.Fatalf("job %s did not come to what was waited for; tasks: %s", job, states)
	return nil
}

// finalLog waits for the task's end and returns what it wrote.
func finalLog(t *testing.T, nomad *api.Client, alloc *api.Allocation, task string) string {
	t.Helper()
	alloc = waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool { return a.TaskStates[task] != nil && a.TaskStates[task].State == "dead" })
	if alloc.TaskStates[task].Failed {
		events, _ := json.MarshalIndent(alloc.TaskStates[task].Events, "", " ")
		t.Fatalf("task failed: %s", events)
	}
	r, err := nomad.AllocFS().Cat(alloc, "alloc/logs/"+task+".stdout.0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestLiveGates proves both forms of gate: one that starts closed, and one
// that holds a task back after its end.
func TestLiveGates(t *testing.T) {
	nomad := liveNomad(t)
	in := testInputs()
	in.Cluster = "live"
	in.Node.Region = ""
	pod := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: corev1.DNSDefault}}
	pod.Namespace, pod.Name, pod.UID = "default", "gates", types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000001", time.Now().UnixNano()&0xffffffff))
	sh := func(name, script string) corev1.Container {
		return corev1.Container{Name: name, Image: "busybox:1.36", Command: []string{"sh", "-c", script}}
	}
	pod.Spec.InitContainers = []corev1.Container{sh("one", "true"), sh("two", "true")}
	pod.Spec.Containers = []corev1.Container{sh("main", "sleep 0.2; exit 1"), sh("other", "sleep 600")}
	alloc := startLive(t, nomad, pod, in, nil)
	gate := func(task, value string) {
		t.Helper()
		path := GatePath(alloc.JobID, task)
		var err error
		if value == "" {
			_, err = nomad.Variables().Delete(path, nil)
		} else {
			_, _, err = nomad.Variables().Update(&api.Variable{Path: path, Items: api.VariableItems{GateItem: value}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	state := func(a *api.Allocation, task string) *api.TaskState {
		if s := a.TaskStates[task]; s != nil {
			return s
		}
		return &api.TaskState{}
	}
	waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool { return state(a, "one").State == "dead" })
	time.Sleep(2 * time.Second)
	if s := state(waitAlloc(t, nomad, alloc.JobID, func(*api.Allocation) bool { return true }), "two"); !s.StartedAt.IsZero() {
		t.Fatal("the second init container started with its gate closed")
	}
	begin := time.Now()
	gate("two", GateOpen)
	a := waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool { return !state(a, "two").StartedAt.IsZero() })
	if took := state(a, "two").StartedAt.Sub(begin); took > 3*time.Second {
		t.Errorf("the task started %v after its gate was opened", took)
	} else {
		t.Logf("closed gate: opened to started %v", took)
	}

	waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool {
		return state(a, "main").Restarts == 1 && state(a, "main").State == "pending"
	})
	gate("main", GateHold)
	time.Sleep(4 * time.Second)
	a = waitAlloc(t, nomad, alloc.JobID, func(*api.Allocation) bool { return true })
	if s := state(a, "main"); s.Restarts != 1 || s.State != "pending" {
		t.Fatalf("main is %s after %d restarts, though it is held", s.State, s.Restarts)
	}
	if s := state(a, "other"); s.State != "running" || s.Restarts != 0 {
		t.Fatalf("other is %s after %d restarts", s.State, s.Restarts)
	}
	begin = time.Now()
	gate("main", "")
	waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool {
		return state(a, "main").Restarts >= 2 || state(a, "main").State == "running"
	})
	t.Logf("hold released: deleted to seen started %v", time.Since(begin))
}

// TestLiveGoldensRun runs the golden pods whose needs this Nomad meets, with
// a small image: only a client tells whether a driver takes a configuration.
func TestLiveGoldensRun(t *testing.T) {
	nomad := liveNomad(t)
	for _, name := range []string{"minimal", "web", "init", "never-two", "stateful", "security", "pull-secret", "mock"} {
		t.Run(name, func(t *testing.T) {
			pod, in := readCase(t, filepath.Join("testdata", name))
			in.Cluster, in.Node.CompanionImage = "live", os.Getenv("COMPANION_IMAGE")
			pod.UID = types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000002", time.Now().UnixNano()&0xffffffff))
			for i := range pod.Spec.InitContainers {
				c := &pod.Spec.InitContainers[i]
				c.Image, c.Command = "busybox:1.36", []string{"true"}
				if c.RestartPolicy != nil {
					c.Command = []string{"sleep", "60"}
				}
			}
			for i := range pod.Spec.Containers {
				c := &pod.Spec.Containers[i]
				c.Image, c.Command, c.ImagePullPolicy = "busybox:1.36", []string{"sh", "-c", "sleep 60", "x"}, ""
			}
			alloc := startLive(t, nomad, pod, in, nil)
			res, err := Job(pod, in)
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range res.ClosedGates {
				v := &api.Variable{Path: GatePath(alloc.JobID, task), Items: api.VariableItems{GateItem: GateOpen}}
				if _, _, err := nomad.Variables().Update(v, nil); err != nil {
					t.Fatal(err)
				}
			}
			waitAlloc(t, nomad, alloc.JobID, func(a *api.Allocation) bool {
				for _, task := range res.Job.TaskGroups[0].Tasks {
					s := a.TaskStates[task.Name]
					if s == nil || s.Failed || s.State != "running" && !(s.State == "dead" && task.Lifecycle != nil) {
						return false
					}
				}
				return true
			})
		})
	}
}
