package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// template is a pod template for controllers, labelled app=name.
func template(name, script string, opts ...option) corev1.PodTemplateSpec {
	p := pod(name, script, append([]option{restart(corev1.RestartPolicyAlways)}, opts...)...)
	p.Labels = map[string]string{"app": name}
	p.Name = ""
	return corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
}

func selector(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

// deploy makes a Deployment.
func deploy(t *testing.T, ns, name string, replicas int32, tmpl corev1.PodTemplateSpec) {
	t.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: selector(name), Template: tmpl}}
	if _, err := kube.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// podsOf are those of a controller that are not being deleted, by name.
func podsOf(t *testing.T, ns, app string) []corev1.Pod {
	t.Helper()
	list, err := kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	pods := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods
}

func uids(pods []corev1.Pod) []types.UID {
	var out []types.UID
	for i := range pods {
		out = append(out, pods[i].UID)
	}
	return out
}

// kubectl rollout follows, restarts and undoes a Deployment.
func TestRollout(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	env := func(value string) option {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "VERSION", Value: value}} }
	}
	deploy(t, ns, "web", 2, template("web", idle, env("one")))
	status := func() []types.UID {
		t.Helper()
		kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=90s")
		kubectl(t, "-n", ns, "wait", "deployment/web", "--for=condition=Available", "--timeout=10s")
		pods := podsOf(t, ns, "web")
		if len(pods) != 2 || !ready(&pods[0]) || !ready(&pods[1]) {
			t.Fatalf("rolled out are %d pods", len(pods))
		}
		return uids(pods)
	}
	others := func(a, b []types.UID) bool { return !slices.Contains(a, b[0]) && !slices.Contains(a, b[1]) }
	// Not by deploy/web, which may be an old pod that is about to end.
	version := func() string {
		return kubectl(t, "-n", ns, "exec", podsOf(t, ns, "web")[0].Name, "--", "sh", "-c", "echo $VERSION")
	}
	first := status()
	kubectl(t, "-n", ns, "rollout", "restart", "deployment/web")
	second := status()
	if !others(first, second) || version() != "one\n" {
		t.Errorf("after the restart: %v, %v before", second, first)
	}
	kubectl(t, "-n", ns, "set", "env", "deployment/web", "VERSION=two")
	third := status()
	if got := version(); got != "two\n" || !others(second, third) {
		t.Errorf("after the change: %q", got)
	}
	kubectl(t, "-n", ns, "rollout", "undo", "deployment/web")
	if fourth := status(); !others(third, fourth) || version() != "one\n" {
		t.Errorf("after the undoing: %v, %v before", fourth, third)
	}
	for _, p := range podsOf(t, ns, "web") {
		if status := p.Status.ContainerStatuses; len(status) != 1 || status[0].RestartCount != 0 {
			t.Errorf("%s", describe(&p))
		}
	}
}

// A StatefulSet's pods start and are replaced one by one, in order and under their
// names, by partition.
func TestStatefulSet(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const n = 3
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: new(int32(n)), Selector: selector("db"), ServiceName: "db", Template: template("db", "hostname; "+idle),
	}}
	if _, err := kube.AppsV1().StatefulSets(ns).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	roll := func() []corev1.Pod {
		t.Helper()
		kubectl(t, "-n", ns, "rollout", "status", "statefulset/db", "--timeout=120s")
		pods := podsOf(t, ns, "db")
		if len(pods) != n {
			t.Fatalf("%d pods", len(pods))
		}
		for i := range pods {
			if pods[i].Name != fmt.Sprintf("db-%d", i) {
				t.Errorf("pod %d is called %s", i, pods[i].Name)
			}
		}
		return pods
	}
	inOrder := func(pods []corev1.Pod) {
		t.Helper()
		for i := 1; i < len(pods); i++ {
			for _, c := range pods[i-1].Status.Conditions {
				if c.Type == corev1.PodReady && pods[i].CreationTimestamp.Before(&c.LastTransitionTime) {
					t.Errorf("%s was made at %s, before %s was ready at %s", pods[i].Name, pods[i].CreationTimestamp, pods[i-1].Name, c.LastTransitionTime)
				}
			}
		}
	}
	first := roll()
	inOrder(first)
	for i := range first {
		if out := logs(t, kube, &first[i], &corev1.PodLogOptions{}); out != first[i].Name+"\n" {
			t.Errorf("%s calls itself %q", first[i].Name, out)
		}
	}
	// One that is deleted comes again under its name, alone.
	kubectl(t, "-n", ns, "delete", "pod", "db-1", "--wait")
	eventually(t, 60*time.Second, "db-1 again", func() error {
		p, err := kube.CoreV1().Pods(ns).Get(t.Context(), "db-1", metav1.GetOptions{})
		if err == nil && (p.UID == first[1].UID || !ready(p)) {
			err = fmt.Errorf("%s", describe(p))
		}
		return err
	})
	second := roll()
	if second[0].UID != first[0].UID || second[2].UID != first[2].UID {
		t.Error("others were replaced, too")
	}
	patch := func(partition int, version string) {
		t.Helper()
		kubectl(t, "-n", ns, "patch", "statefulset", "db", "--type=strategic", "-p", fmt.Sprintf(
			`{"spec":{"updateStrategy":{"rollingUpdate":{"partition":%d}},"template":{"metadata":{"annotations":{"version":%q}}}}}`, partition, version))
	}
	patch(2, "two")
	third := roll()
	if third[0].UID != second[0].UID || third[1].UID != second[1].UID || third[2].UID == second[2].UID || third[2].Annotations["version"] != "two" {
		t.Errorf("partition 2: %v, %v before", uids(third), uids(second))
	}
	patch(0, "two")
	fourth := roll()
	if fourth[0].UID == third[0].UID || fourth[1].UID == third[1].UID || fourth[2].UID != third[2].UID {
		t.Errorf("partition 0: %v, %v before", uids(fourth), uids(third))
	}
	slices.Reverse(fourth[:2])
	inOrder(fourth[:2]) // the last is replaced first
}

// kubectl drain empties a virtual node by evictions, which a disruption budget
// holds up, and leaves DaemonSets' pods.
func TestDrain(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	there := func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{"example.com/drained": "yes"}
		p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	}
	deploy(t, ns, "web", 2, template("web", idle, func(p *corev1.Pod) {
		there(p)
		// Not the cordon's.
		p.Spec.Tolerations[0].Key = "example.com/drained"
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}))
	agent := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Spec: appsv1.DaemonSetSpec{Selector: selector("agent"), Template: template("agent", idle, there)}}
	if _, err := kube.AppsV1().DaemonSets(ns).Create(t.Context(), agent, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: selector("web")}}
	if _, err := kube.PolicyV1().PodDisruptionBudgets(ns).Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	rolledOut := func() {
		t.Helper()
		for _, what := range []string{"deployment/web", "daemonset/agent"} {
			kubectl(t, "-n", ns, "rollout", "status", what, "--timeout=90s")
		}
	}
	here := func() (pods []corev1.Pod) {
		for _, p := range podsOf(t, ns, "web") {
			if p.Spec.NodeName == drainedNode {
				pods = append(pods, p)
			}
		}
		return pods
	}
	rolledOut()
	eventually(t, 20*time.Second, "the budget allows an eviction", func() error {
		b, err := kube.PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), "web", metav1.GetOptions{})
		if err == nil && b.Status.DisruptionsAllowed != 1 {
			err = fmt.Errorf("it allows %d", b.Status.DisruptionsAllowed)
		}
		return err
	})
	before := here()
	daemons := uids(podsOf(t, ns, "agent"))

	if out, err := tryKubectl(t, "", "drain", drainedNode, "--timeout=20s"); err == nil || !strings.Contains(out, "DaemonSet-managed") || !strings.Contains(out, "local storage") {
		t.Errorf("it is not asked for what is lost: %v\n%s", err, out)
	}
	out, err := tryKubectl(t, "", "drain", drainedNode, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=9s")
	if err == nil || !strings.Contains(out, "disruption budget") {
		t.Errorf("the budget was not heeded: %v\n%s", err, out)
	}
	if left := here(); len(before) != 2 || len(left) != 1 || !ready(&left[0]) || !slices.Contains(uids(before), left[0].UID) {
		t.Errorf("%d pods are left of %d", len(left), len(before))
	}
	kubectl(t, "uncordon", drainedNode)
	rolledOut()

	kubectl(t, "-n", ns, "delete", "pdb", "web")
	kubectl(t, "drain", drainedNode, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
	if left := here(); len(left) != 0 {
		t.Errorf("%d pods are left", len(left))
	}
	if now := podsOf(t, ns, "agent"); !slices.Equal(uids(now), daemons) || !ready(&now[0]) {
		t.Error("the DaemonSet's pod was evicted")
	}
	node, err := kube.CoreV1().Nodes().Get(t.Context(), drainedNode, metav1.GetOptions{})
	if err != nil || !node.Spec.Unschedulable {
		t.Errorf("the node is not cordoned: %v", err)
	}
	kubectl(t, "uncordon", drainedNode)
	rolledOut()
	if now := here(); len(now) != 2 {
		t.Errorf("%d pods came back", len(now))
	}
}

// What takes a minute: an exec session in which nobody says anything, longer than
// any timeout on its way that could take it for dead (the longest is the 30 s that
// streams have to be made), and the schedule of a CronJob.
func TestAMinute(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	await(t, kube, create(t, kube, ns, pod("p", idle)), 60*time.Second, "ready", ready)
	silent := startKubectl(t, nil, "-n", ns, "exec", "p", "--", "sh", "-c", "echo begun; sleep 40; echo over; exit 9")
	silent.says(t, "begun", 30*time.Second)
	begin := time.Now()

	tmpl := template("tick", "date +%s")
	tmpl.Spec.RestartPolicy = corev1.RestartPolicyNever
	cron := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "tick"}, Spec: batchv1.CronJobSpec{
		Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: tmpl}},
	}}
	if _, err := kube.BatchV1().CronJobs(ns).Create(t.Context(), cron, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "-n", ns, "create", "job", "by-hand", "--from=cronjob/tick")
	kubectl(t, "-n", ns, "wait", "job/by-hand", "--for=condition=complete", "--timeout=60s")
	var scheduled string
	eventually(t, 80*time.Second, "a job on schedule", func() error {
		jobs, err := kube.BatchV1().Jobs(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, j := range jobs.Items {
			if j.Name != "by-hand" && metav1.GetControllerOf(&j) != nil {
				scheduled = j.Name
				return nil
			}
		}
		return fmt.Errorf("%d jobs", len(jobs.Items))
	})
	kubectl(t, "-n", ns, "wait", "job/"+scheduled, "--for=condition=complete", "--timeout=60s")
	if out := strings.TrimSpace(kubectl(t, "-n", ns, "logs", "job/"+scheduled)); len(out) != 10 {
		t.Errorf("the job says %q", out)
	}
	kubectl(t, "-n", ns, "delete", "cronjob", "tick")

	if err := silent.ends(t, 90*time.Second); exitCode(err) != 9 {
		t.Errorf("after %s the exec session ended with %v: %q", time.Since(begin).Round(time.Second), err, silent.out.buf.String())
	}
	silent.says(t, "over", time.Second)
	if took := time.Since(begin); took < 39*time.Second {
		t.Errorf("it ended after %s", took)
	}
}
