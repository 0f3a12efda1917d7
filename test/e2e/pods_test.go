package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func TestRunLogsExecDelete(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("web", `trap 'echo bye; exit 0' TERM; echo hello; httpd -p 8080; while true; do sleep 0.1; done`,
		restart(corev1.RestartPolicyAlways)))
	p = await(t, kube, p, 30*time.Second, "ready", ready)
	switch {
	case p.Status.PodIP == "" || p.Status.HostIP == "":
		t.Errorf("addresses: pod %q host %q", p.Status.PodIP, p.Status.HostIP)
	case p.Status.StartTime == nil || p.Status.QOSClass != corev1.PodQOSBestEffort:
		t.Errorf("start time %v, QoS %s", p.Status.StartTime, p.Status.QOSClass)
	case p.Status.ObservedGeneration != p.Generation:
		t.Errorf("observed generation %d of %d", p.Status.ObservedGeneration, p.Generation)
	}
	st := status(p, "c")
	if st.State.Running == nil || st.RestartCount != 0 || !strings.HasPrefix(st.ContainerID, "nomad://") {
		t.Errorf("container status %+v", st)
	}
	if a := p.Annotations; a[translate.AnnotationJob] != jobID(cluster, p) || a[translate.AnnotationClient] == "" || !strings.HasSuffix(a[translate.AnnotationUI], "/ui/allocations/"+translate.AllocID(&p.Status)) {
		t.Errorf("annotations %v", a)
	}
	if !strings.Contains(st.ImageID, "sha256:") {
		t.Errorf("image ID %q", st.ImageID)
	}
	eventually(t, 10*time.Second, "the log", func() error {
		if got := logs(t, kube, p, &corev1.PodLogOptions{}); got != "hello\n" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	out, errOut, code := execIn(t, p, "c", strings.NewReader("from stdin"), "sh", "-c", "cat; echo err >&2; sleep 0.3; exit 7")
	if out != "from stdin" || errOut != "err\n" || code != 7 {
		t.Errorf("exec: %q, %q, code %d", out, errOut, code)
	}
	remove(t, kube, p, nil)
	last := await(t, kube, p, 20*time.Second, "told as ended", func(p *corev1.Pod) bool { return status(p, "c").State.Terminated != nil })
	if code := status(last, "c").State.Terminated.ExitCode; code != 0 {
		t.Errorf("the container had its grace period, but ended with %d", code)
	}
	awaitGone(t, kube, p, 20*time.Second)
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
}

func TestEnvironmentAndVolumes(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	binary := []byte{0, 1, 2, 0xff, 0xfe, '\n', '%', '{', '$', '{'}
	if _, err := kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "conf"},
		Data:       map[string]string{"greeting": `hi ${HOME} "there" $(NOT)`, "empty": ""},
		BinaryData: map[string][]byte{"bin": binary},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	secret := "s3cr3t-" + ns + "-${NOMAD_TASK_NAME}-<&>\\n{{ }}"
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "sec"}, StringData: map[string]string{"password": secret},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := pod("env", "sleep 3600", func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "x"}
		p.Annotations = map[string]string{"note": "a\"b"}
		c := &p.Spec.Containers[0]
		c.Env = []corev1.EnvVar{
			{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "HOST_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}},
			{Name: "PW", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}, Key: "password"}}},
			{Name: "URL", Value: "http://$(POD_IP):80/$(PW)/$$(PW)/$(UNKNOWN)/${HOME}"},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
		}
		c.EnvFrom = []corev1.EnvFromSource{{Prefix: "C_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("150m"), corev1.ResourceMemory: resource.MustParse("32Mi")}
		c.Command = []string{"sh", "-c", `printf '%s' "$1" > /shared/arg; exec sleep 3600`, "$(PW)"}
		c.Args = []string{"$(URL)"}
		mode := int32(0o400)
		p.Spec.Volumes = []corev1.Volume{
			{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
			{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec", DefaultMode: &mode}}},
			{Name: "down", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			}}}},
			{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
		c.VolumeMounts = []corev1.VolumeMount{
			{Name: "conf", MountPath: "/conf"}, {Name: "sec", MountPath: "/sec", ReadOnly: true},
			{Name: "down", MountPath: "/down"}, {Name: "shared", MountPath: "/shared"},
		}
	})
	p = await(t, kube, create(t, kube, ns, p), 40*time.Second, "ready", ready)
	read := func(script string) string {
		out, errOut, code := execIn(t, p, "c", nil, "sh", "-c", script+"; sleep 0.3")
		if errOut != "" || code != 0 {
			t.Errorf("%s: code %d, %s", script, code, errOut)
		}
		return out
	}
	for script, want := range map[string]string{
		`printf %s "$PW"`:                            secret,
		`printf %s "$POD_IP"`:                        p.Status.PodIP,
		`printf %s "$HOST_IP"`:                       p.Status.HostIP,
		`printf %s "$URL"`:                           "http://" + p.Status.PodIP + ":80/" + secret + "/$(PW)/$(UNKNOWN)/${HOME}",
		`printf %s "$C_greeting"`:                    `hi ${HOME} "there" $(NOT)`,
		`printf %s "[$C_empty]"`:                     "[]",
		`printf %s "$CPU"`:                           "150",
		`cat /shared/arg`:                            "http://" + p.Status.PodIP + ":80/" + secret + "/$(PW)/$(UNKNOWN)/${HOME}",
		`cat /conf/bin`:                              string(binary),
		`cat /conf/greeting`:                         `hi ${HOME} "there" $(NOT)`,
		`cat /sec/password`:                          secret,
		`stat -L -c %a /sec/password`:                "400\n",
		`grep app= /down/labels`:                     "app=\"x\"\n", // the API server adds labels of its own
		`touch /sec/x 2>/dev/null || echo read-only`: "read-only\n",
	} {
		if got := read(script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	// A Secret's value is nowhere but in the Variable.
	job, _, err := nomad.Jobs().Info(jobID(cluster, p), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("%+v", deep(t, job)); strings.Contains(text, "s3cr3t") {
		t.Error("the job holds the secret's value")
	}
}

func TestFinishedPods(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("both", "", func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{
			container("good", "sleep 1; exit 0"), container("bad", "sleep 3; exit 5"), container("late", "sleep 5; echo done; exit 0"),
		}
	}))
	p = await(t, kube, p, 60*time.Second, "failed", phase(corev1.PodFailed))
	for name, code := range map[string]int32{"good": 0, "bad": 5, "late": 0} {
		st := status(p, name)
		if st.State.Terminated == nil || st.State.Terminated.ExitCode != code || st.RestartCount != 0 {
			t.Errorf("container %s: %+v", name, st)
		}
	}
	// The job is stopped; the pod's status stays when Nomad forgets the job.
	id := jobID(cluster, p)
	eventually(t, 20*time.Second, "the job is dead", func() error {
		j, _, err := nomad.Jobs().Info(id, nil)
		if err == nil && *j.Status != "dead" {
			err = fmt.Errorf("status %s", *j.Status)
		}
		return err
	})
	if _, _, err := nomad.Jobs().Deregister(id, true, nil); err != nil {
		t.Fatal(err)
	}
	if err := nomad.System().GarbageCollect(); err != nil {
		t.Fatal(err)
	}
	touch(t, p)
	time.Sleep(2 * time.Second) // nothing is to happen: there is no event to await
	p, err := kube.CoreV1().Pods(ns).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil || p.Status.Phase != corev1.PodFailed || p.Status.Reason != "" {
		t.Errorf("the finished pod became %s %s (%v)", p.Status.Phase, p.Status.Reason, err)
	}
	if _, _, err := nomad.Jobs().Info(id, nil); err == nil {
		t.Error("the finished pod was run again")
	}
}

func TestCrashLoop(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("crash", "", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{container("boom", "exit 7"), container("ok", "sleep 3600")}
	}))
	p = await(t, kube, p, 60*time.Second, "in back-off", func(p *corev1.Pod) bool {
		w := status(p, "boom").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
	st := status(p, "boom")
	if l := st.LastTerminationState.Terminated; l == nil || l.ExitCode != 7 {
		t.Errorf("last state %+v", st.LastTerminationState)
	}
	if p.Status.Phase != corev1.PodRunning {
		t.Errorf("phase %s", p.Status.Phase)
	}
	if other := status(p, "ok"); other.State.Running == nil || other.RestartCount != 0 {
		t.Errorf("the sibling: %+v", other)
	}
}

func TestInitContainersInOrder(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("init", "cat /s/order; sleep 3600", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		for _, name := range []string{"one", "two", "three"} {
			p.Spec.InitContainers = append(p.Spec.InitContainers, container(name, "sleep 0.5; echo "+name+" >> /s/order"))
		}
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				list[i].VolumeMounts = []corev1.VolumeMount{{Name: "s", MountPath: "/s"}}
			}
		}
	}))
	p = await(t, kube, p, 60*time.Second, "ready", ready)
	eventually(t, 5*time.Second, "the order", func() error {
		if got := logs(t, kube, p, &corev1.PodLogOptions{Container: "c"}); got != "one\ntwo\nthree\n" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

func TestWaitsForConfigMap(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("waits", "sleep 3600", func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "later"}}}}
	}))
	p = await(t, kube, p, 20*time.Second, "told to wait", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, `configmap "later" not found`)
	})
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}, Data: map[string]string{"A": "b"}}
	if _, err := kube.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, kube, p, 30*time.Second, "ready", ready)
}

func TestImageThatDoesNotExist(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("noimage", "", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Containers[0].Image = "registry.invalid/nothing:1"
	}))
	p = await(t, kube, p, 60*time.Second, "in back-off", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && w.Reason == "ImagePullBackOff" && strings.Contains(w.Message, "registry.invalid")
	})
	if p.Status.Phase != corev1.PodPending || status(p, "c").RestartCount != 0 {
		t.Errorf("phase %s, %d restarts", p.Status.Phase, status(p, "c").RestartCount)
	}
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 20*time.Second)
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
}

// A pod that is not to be restarted is tried again all the same while nothing
// of it has started.
func TestImageThatDoesNotExistYet(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	for _, p := range []*corev1.Pod{
		pod("one", "", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "registry.invalid/nothing:1" }),
		pod("init", "true", func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{container("i", "true")}
			p.Spec.InitContainers[0].Image = "registry.invalid/nothing:1"
		}),
	} {
		p = create(t, kube, ns, p)
		failing := "c"
		if p.Name == "init" {
			failing = "i"
		}
		p = await(t, kube, p, 90*time.Second, "in back-off after a second try", func(p *corev1.Pod) bool {
			w := status(p, failing).State.Waiting
			return w != nil && w.Reason == "ImagePullBackOff"
		})
		if p.Status.Phase != corev1.PodPending || status(p, failing).RestartCount != 0 {
			t.Errorf("%s", describe(p))
		}
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 20*time.Second)
		awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
	}
}

func TestRefusedFields(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("refused", "true", func(p *corev1.Pod) {
		yes := true
		p.Spec.HostPID = true
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	}))
	p = await(t, kube, p, 20*time.Second, "failed", phase(corev1.PodFailed))
	for _, want := range []string{"spec.hostPID", "hostAccess.hostPID", "securityContext.privileged", "hostAccess.privileged"} {
		if !strings.Contains(p.Status.Message, want) {
			t.Errorf("the message does not name %s: %s", want, p.Status.Message)
		}
	}
	eventOf(t, kube, p, "UnsupportedByNomad")
	if _, _, err := nomad.Jobs().Info(jobID(cluster, p), nil); err == nil {
		t.Error("a refused pod has a job")
	}
}

// A pod that no client can take waits, says why in Nomad's words, and runs when
// a client changes so that it can.
func TestUnplacedUntilRoomAppears(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	key := "room_" + strings.ReplaceAll(ns, "-", "_")
	p := create(t, kube, ns, pod("unplaced", "", mock, restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationConstraints: fmt.Sprintf("- {attribute: '${meta.%s}', operator: '=', value: 'yes'}", key)}
	}))
	placed := func(want corev1.ConditionStatus) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			for _, c := range p.Status.Conditions {
				if c.Type == translate.ConditionPlaced {
					return c.Status == want && (want == corev1.ConditionTrue || strings.Contains(c.Message, key))
				}
			}
			return false
		}
	}
	p = await(t, kube, p, 20*time.Second, "told as unplaced", placed(corev1.ConditionFalse))
	if msg := eventOf(t, kube, p, "FailedPlacement"); !strings.Contains(msg, key) {
		t.Errorf("event: %s", msg)
	}
	nodes, _, err := nomad.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	yes := "yes"
	if _, err := nomad.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{NodeID: nodes[0].ID, Meta: map[string]*string{key: &yes}}, nil); err != nil {
		t.Fatal(err)
	}
	p = await(t, kube, p, 40*time.Second, "running", phase(corev1.PodRunning))
	if !placed(corev1.ConditionTrue)(p) {
		t.Errorf("condition Placed is not true:\n%s", describe(p))
	}
}

func TestDeleteWhilePending(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("pending", "", mock, func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationConstraints: "- {attribute: '${meta.nowhere}', operator: '=', value: 'x'}"}
	}))
	eventOf(t, kube, p, "FailedPlacement")
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 20*time.Second)
	awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
}

func TestForcedDelete(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("stubborn", "trap '' TERM; while true; do sleep 1; done", func(p *corev1.Pod) {
		long := int64(300)
		p.Spec.TerminationGracePeriodSeconds = &long
	}))
	p = await(t, kube, p, 30*time.Second, "ready", ready)
	zero := int64(0)
	remove(t, kube, p, &zero)
	awaitNoJob(t, nomad, jobID(cluster, p), 30*time.Second)
}

// A pod that is given less time at its deletion than it asked for is killed
// when that is over.
func TestShorterGrace(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := create(t, kube, ns, pod("slow", "trap '' TERM; while true; do sleep 1; done", func(p *corev1.Pod) {
		long := int64(300)
		p.Spec.TerminationGracePeriodSeconds = &long
	}))
	p = await(t, kube, p, 30*time.Second, "ready", ready)
	two := int64(2)
	start := time.Now()
	remove(t, kube, p, &two)
	awaitGone(t, kube, p, 30*time.Second)
	if took := time.Since(start); took < 1500*time.Millisecond {
		t.Errorf("gone after %s, before its grace period", took)
	}
}

// What others write into a pod's status and metadata stays.
func TestForeignConditionsStay(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	p := pod("gated", "", mock, restart(corev1.RestartPolicyAlways))
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/gate"}}
	p = await(t, kube, create(t, kube, ns, p), 30*time.Second, "running", phase(corev1.PodRunning))
	if ready(p) {
		t.Fatal("ready although its gate is not set")
	}
	p = p.DeepCopy()
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "example.com/gate", Status: corev1.ConditionTrue})
	eventually(t, 10*time.Second, "the gate is written", func() error {
		_, err := kube.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
		return err
	})
	p = await(t, kube, p, 20*time.Second, "ready", ready)
	found := false
	for _, c := range p.Status.Conditions {
		found = found || c.Type == "example.com/gate" && c.Status == corev1.ConditionTrue
	}
	if !found {
		t.Error("the foreign condition is gone")
	}
}

// A ConfigMap's change reaches the files of a running container.
func TestLiveConfigMap(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	cm, err := kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "old"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := create(t, kube, ns, pod("live", "sleep 3600", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "conf", MountPath: "/conf"}}
	}))
	p = await(t, kube, p, 30*time.Second, "ready", ready)
	cm.Data["k"] = "new"
	if _, err := kube.CoreV1().ConfigMaps(ns).Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the new content", func() error {
		if out, _, _ := execIn(t, p, "c", nil, "sh", "-c", "cat /conf/k; sleep 0.2"); out != "new" {
			return fmt.Errorf("got %q", out)
		}
		return nil
	})
}

// One process serves several virtual nodes, each with its own kubelet API and
// its own rules.
func TestSecondVirtualNode(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	onSecond := func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{"example.com/second": "yes"}
		p.Spec.Tolerations = []corev1.Toleration{{Key: "example.com/second", Operator: corev1.TolerationOpExists}}
	}
	p := await(t, kube, create(t, kube, ns, pod("second", "echo here; sleep 3600", onSecond)), 30*time.Second, "ready", ready)
	if p.Spec.NodeName != secondNode {
		t.Errorf("it is on %s", p.Spec.NodeName)
	}
	if out, _, code := execIn(t, p, "c", nil, "echo", "there"); out != "there\n" || code != 0 {
		t.Errorf("exec: %q, code %d", out, code)
	}
	hostPort := create(t, kube, ns, pod("hostport", "sleep 3600", onSecond, func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8089}}
	}))
	if got := await(t, kube, hostPort, 20*time.Second, "failed", phase(corev1.PodFailed)); !strings.Contains(got.Status.Message, "hostAccess.hostPorts") {
		t.Errorf("message: %s", got.Status.Message)
	}
}
