package translate

import (
	"errors"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// podWith returns a small pod changed by mutate.
func podWith(mutate func(p *corev1.Pod, c *corev1.Container)) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "busybox:1.36"}}}}
	p.Namespace, p.Name, p.UID = "ns", "p", "0b5e0d5c-0000-4000-8000-000000000000"
	mutate(p, &p.Spec.Containers[0])
	return p
}

func mustTask(t *testing.T, p *corev1.Pod, in Inputs) *api.Task {
	t.Helper()
	res, err := Job(p, in)
	if err != nil {
		t.Fatal(err)
	}
	return res.Job.TaskGroups[0].Tasks[0]
}

// The cases of k8s.io/kubernetes/third_party/forked/golang/expansion.
func TestExpand(t *testing.T) {
	vars := map[string]string{"VAR_A": "A", "VAR_B": "B", "VAR_EMPTY": "", "VAR_REF": "$(VAR_A)"}
	lookup := func(name string) (text, bool) {
		v, ok := vars[name]
		return literal(v), ok
	}
	for in, want := range map[string]string{
		"":                          "",
		"plain":                     "plain",
		"$(VAR_A)":                  "A",
		"___$(VAR_B)___":            "___B___",
		"$(VAR_A)$(VAR_B)":          "AB",
		"$(VAR_EMPTY)":              "",
		"foo$(VAR_EMPTY)bar":        "foobar",
		"$(VAR_REF)":                "$(VAR_A)",
		"$$(VAR_A)_$(VAR_A)":        "$(VAR_A)_A",
		"f00-$(VAR_A)$$(VAR_B)":     "f00-A$(VAR_B)",
		"$$$(VAR_A)":                "$A",
		"$$$$(VAR_A)":               "$$(VAR_A)",
		"$$$$$$$(VAR_A)":            "$$$A",
		"$VAR_A":                    "$VAR_A",
		"$":                         "$",
		"$$":                        "$",
		"foo$$bar":                  "foo$bar",
		"$(UNKNOWN)":                "$(UNKNOWN)",
		"$(VAR_A":                   "$(VAR_A",
		"$(VAR_A\\)":                "$(VAR_A\\)",
		"foo$(VAR_A":                "foo$(VAR_A",
		"$()":                       "$()",
		"$(VAR_A)(VAR_B)":           "A(VAR_B)",
		"$(VAR_(A))":                "$(VAR_(A))",
		"--$($($($($--$(VAR_A)--":   "--$($($($($--$(VAR_A)--",
		"日本$(VAR_A)$日":              "日本A$日",
		"--flag=${NAME} %{ if }$$$": "--flag=${NAME} %{ if }$$",
	} {
		got, ok := expand(in, lookup).static()
		if !ok || got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRenderings(t *testing.T) {
	run, env := segment{run: runPodIP}, segment{env: `A"B`}
	for _, c := range []struct {
		in                      text
		plain, config, template string
	}{
		{literal("a"), "a", "a", `"a"`},
		{literal("${a}"), "-", "$${a}", `"${a}"`},
		{literal("$${a} %{b"), "-", "$$${a} %%{b", `"$${a} %{b"`},
		{text{{lit: "$"}, {lit: "{a}"}}, "-", "$${a}", `printf "%s%s" "$" "{a}"`},
		{text{{lit: "x="}, run}, "x=${NOMAD_ALLOC_IP_pod}", `x=${env["NOMAD_ALLOC_IP_pod"]}`, `printf "%s%s" "x=" (env "NOMAD_ALLOC_IP_pod")`},
		{text{{lit: "$"}, run}, "-", `${"$"}${env["NOMAD_ALLOC_IP_pod"]}`, `printf "%s%s" "$" (env "NOMAD_ALLOC_IP_pod")`},
		{text{env}, "-", `${env["A\"B"]}`, `""`},
		{text{{run: runHostIP}}, "${attr.unique.network.ip-address}", "${attr.unique.network.ip-address}", `(env "attr.unique.network.ip-address")`},
		{nil, "", "", `""`},
	} {
		plain, ok := c.in.plainEnv()
		if !ok {
			plain = "-"
		}
		if plain != c.plain || c.in.config() != c.config || c.in.template() != c.template {
			t.Errorf("%v: plain %q, config %q, template %q", c.in, plain, c.in.config(), c.in.template())
		}
	}
}

func TestResources(t *testing.T) {
	q := resource.MustParse
	for _, c := range []struct {
		name            string
		requests, limit corev1.ResourceList
		over            bool
		cpu, mem, max   int
		hard            bool
	}{
		{name: "nothing", cpu: 1, mem: 128},
		{name: "nothing, oversubscribed", over: true, cpu: 1, mem: 128, max: -1},
		{name: "one byte more than a MiB", requests: corev1.ResourceList{"memory": q("33554433")}, cpu: 1, mem: 33},
		{name: "little", requests: corev1.ResourceList{"cpu": q("1m"), "memory": q("1")}, over: true, cpu: 1, mem: 10, max: -1},
		{name: "less than a millicore", requests: corev1.ResourceList{"cpu": q("100u")}, cpu: 1, mem: 128},
		{name: "request and limit", requests: corev1.ResourceList{"cpu": q("250m"), "memory": q("64Mi")}, limit: corev1.ResourceList{"cpu": q("1"), "memory": q("1Gi")}, over: true, cpu: 250, mem: 64, max: 1024},
		{name: "request and limit without oversubscription", requests: corev1.ResourceList{"memory": q("64Mi")}, limit: corev1.ResourceList{"memory": q("1Gi")}, cpu: 1, mem: 1024},
		{name: "limit alone", limit: corev1.ResourceList{"cpu": q("1500m"), "memory": q("100M")}, over: true, cpu: 1500, mem: 96, hard: true},
		{name: "equal", requests: corev1.ResourceList{"cpu": q("2"), "memory": q("1Gi")}, limit: corev1.ResourceList{"cpu": q("2"), "memory": q("1Gi")}, over: true, cpu: 2000, mem: 1024, hard: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := testInputs()
			in.Node.MemoryOversubscription = c.over
			task := mustTask(t, podWith(func(_ *corev1.Pod, k *corev1.Container) {
				k.Resources = corev1.ResourceRequirements{Requests: c.requests, Limits: c.limit}
			}), in)
			maxMB := 0
			if task.Resources.MemoryMaxMB != nil {
				maxMB = *task.Resources.MemoryMaxMB
			}
			hard := task.Config["cpu_hard_limit"] == true
			if *task.Resources.CPU != c.cpu || *task.Resources.MemoryMB != c.mem || maxMB != c.max || hard != c.hard {
				t.Errorf("cpu %d, memory %d, max %d, hard %v", *task.Resources.CPU, *task.Resources.MemoryMB, maxMB, hard)
			}
		})
	}
}

func TestPriorityKeepsOrder(t *testing.T) {
	last := 0
	for _, p := range []int32{-2147483648, -1000, -1, 0, 1, 10, 1000, 1000000, 1000000000, 2000000000, 2000001000} {
		got := priority(&p)
		if got < minPriority || got > maxPriority || got < last {
			t.Errorf("priority(%d) = %d after %d", p, got, last)
		}
		last = got
	}
	if priority(nil) != 50 {
		t.Error("no priority is not Nomad's default")
	}
}

// A task with siblings must never fail for good, or Nomad kills them.
func TestNoTaskWithSiblingsMayFail(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever} {
		p := podWith(func(p *corev1.Pod, _ *corev1.Container) {
			p.Spec.RestartPolicy = policy
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i:1"}, {Name: "s", Image: "s:1", RestartPolicy: &always}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "d", Image: "d:1"})
		})
		res, err := Job(p, testInputs())
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range res.Job.TaskGroups[0].Tasks {
			r := task.RestartPolicy
			if *r.Mode != api.RestartPolicyModeDelay || !*r.RenderTemplates || !strings.HasSuffix(*task.Templates[0].DestPath, "gate") {
				t.Errorf("%s: task %s may fail: %+v", policy, task.Name, *r)
			}
		}
		if !slices.Equal(res.ClosedGates, []string{"s"}) {
			t.Errorf("%s: closed gates %v", policy, res.ClosedGates)
		}
	}
}

// Nomad renders templates with and without Once apart, and the environment of
// one replaces the other's.
func TestEnvironmentIsInBothTemplateManagers(t *testing.T) {
	in := testInputs()
	in.ConfigMaps["m"] = []string{"k"}
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyNever} {
		task := mustTask(t, podWith(func(p *corev1.Pod, c *corev1.Container) {
			p.Spec.RestartPolicy = policy
			c.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}}}
		}), in)
		managers, withEnv := map[bool]bool{}, map[bool]bool{}
		for _, tmpl := range task.Templates {
			managers[isTrue(tmpl.Once)] = true
			if isTrue(tmpl.Envvars) {
				withEnv[isTrue(tmpl.Once)] = true
			}
		}
		for m := range managers {
			if !withEnv[m] {
				t.Errorf("%s: templates with once=%v have no environment", policy, m)
			}
		}
	}
}

func TestLongNames(t *testing.T) {
	in := testInputs()
	in.Cluster = strings.Repeat("c", 20)
	_, err := Job(podWith(func(p *corev1.Pod, c *corev1.Container) { c.Name = strings.Repeat("n", 63) }), in)
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
}

var fuzzCodecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	_ = corev1.AddToScheme(scheme)
	return serializer.NewCodecFactory(scheme)
}()

// FuzzJob: whatever a pod holds, translation answers, the same twice, and its
// job can be written as HCL.
func FuzzJob(f *testing.F) {
	for seed := range int64(50) {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, seed int64, open bool) {
		pod := &corev1.Pod{}
		fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), fuzzCodecs).NilChance(0.5).NumElements(1, 3).Fill(pod)
		in := testInputs()
		in.Offline = open
		if open {
			// Allow and drop what would refuse every pod, to get further.
			in.Node.HostAccess = HostAccess{HostPaths: []string{"/"}, Privileged: true, Capabilities: []string{"ALL"}, HostNetwork: true, HostPID: true, HostIPC: true, HostPorts: true, Unconfined: true}
			pod.Spec.RuntimeClassName = []*string{nil, new("nomad-vm"), new("mock")}[uint64(seed)%3]
			pod.Spec.Volumes, pod.Spec.Resources, pod.Spec.ResourceClaims, pod.Spec.HostUsers, pod.Spec.OS = nil, nil, nil, nil, nil
		}
		before := pod.DeepCopy()
		res, err := Job(pod, in)
		if !equality.Semantic.DeepEqual(before, pod) {
			t.Fatal("the pod was changed")
		}
		if err != nil {
			var refused *RefusedError
			var missing *MissingError
			if !errors.As(err, &refused) && !errors.As(err, &missing) {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		if _, err := HCL(res.Job); err != nil {
			t.Fatal(err)
		}
	})
}

// Where the image's user decides, the docker proxy looks at it: the pod goes to
// a client that has it, once, and the container says what is asked for.
func TestImageUser(t *testing.T) {
	pod := podWith(func(p *corev1.Pod, c *corev1.Container) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true), RunAsGroup: new(int64(3000))}
		p.Spec.Containers = append(p.Spec.Containers, *c.DeepCopy())
		p.Spec.Containers[1].Name = "d"
	})
	in := testInputs()
	var refused *RefusedError
	if _, err := Job(pod, in); !errors.As(err, &refused) || len(refused.Refusals) != 4 || !strings.Contains(err.Error(), "docker proxy") {
		t.Errorf("without the proxy: %v", err)
	}
	in.Node.DockerProxy = true
	res, err := Job(pod, in)
	if err != nil {
		t.Fatal(err)
	}
	if c := res.Job.Constraints; len(c) != 1 || c[0].LTarget != "${attr.driver.docker.version}" || c[0].RTarget != `\+nomad-kubelet$` {
		t.Errorf("constraints %v", c)
	}
	for _, task := range res.Job.TaskGroups[0].Tasks {
		labels := task.Config["labels"].([]map[string]any)[0]
		who := `pod: "p_ns(0b5e0d5c-0000-4000-8000-000000000000)", container: ` + task.Name
		if task.User != "" || labels[LabelNonRoot] != who || labels[LabelGroup] != "3000" {
			t.Errorf("user %q, labels %v", task.User, labels)
		}
	}
}

// The docker proxy is told of sub-paths, and the pod goes where there is one.
func TestSubPathLabels(t *testing.T) {
	pod := podWith(func(p *corev1.Pod, c *corev1.Container) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/all"}, {Name: "v", MountPath: "/one", SubPath: "a/./b/"}}
	})
	in := testInputs()
	if task := mustTask(t, pod, in); task.Config["labels"] != nil {
		t.Errorf("labels %v without a docker proxy", task.Config["labels"])
	}
	in.Node.DockerProxy = true
	res, err := Job(pod, in)
	if err != nil {
		t.Fatal(err)
	}
	if l := res.Job.TaskGroups[0].Tasks[0].Config["labels"].([]map[string]any)[0]; l[LabelSubPaths] != `{"/one":2}` || len(res.Job.Constraints) != 1 {
		t.Errorf("labels %v, constraints %v", l, res.Job.Constraints)
	}
}

// A volume at /etc/resolv.conf takes the place of Nomad's, with the docker proxy.
func TestVolumeOverResolvConf(t *testing.T) {
	pod := podWith(func(p *corev1.Pod, c *corev1.Container) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/etc/resolv.conf", SubPath: "f"}}
	})
	in := testInputs()
	var refused *RefusedError
	if _, err := Job(pod, in); !errors.As(err, &refused) {
		t.Errorf("without the proxy: %v", err)
	}
	in.Node.DockerProxy = true
	task := mustTask(t, pod, in)
	if l := task.Config["labels"].([]map[string]any)[0]; l[LabelOwnMounts] != "/etc/resolv.conf" {
		t.Errorf("labels %v", l)
	}
	if v := task.Config["volumes"].([]string); len(v) != 1 || !strings.HasSuffix(v[0], ":/etc/resolv.conf") {
		t.Errorf("volumes %v", v)
	}
}

func TestDashedNames(t *testing.T) {
	task := mustTask(t, podWith(func(_ *corev1.Pod, c *corev1.Container) {
		c.Env = []corev1.EnvVar{{Name: "with-dash", Value: "x"}}
		c.Args = []string{"$(with-dash)"}
	}), testInputs())
	if task.Env["with-dash"] != "x" || task.Config["args"].([]string)[0] != "x" {
		t.Errorf("env %v, args %v", task.Env, task.Config["args"])
	}
}
