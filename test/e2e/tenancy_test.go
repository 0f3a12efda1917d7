package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Two Kubernetes clusters on one Nomad do not touch each other's jobs, nor
// those of people.
func TestTwoClustersOnOneNomad(t *testing.T) {
	other := newHybrid(t, ports()+200, func(o *devcluster.Options) { o.NomadAddress = cluster.NomadAddress() })
	ns, otherNS := namespace(t, kube), namespace(t, other.kube)
	mine := await(t, kube, create(t, kube, ns, pod("mine", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)
	theirs := await(t, other.kube, create(t, other.kube, otherNS, pod("theirs", "", mock, restart(corev1.RestartPolicyAlways))), 30*time.Second, "ready", ready)

	// A person's job, with an ID that begins like ours.
	id, typ, name, driver := "k8s-"+cluster.ClusterID()+"x-not-ours", "service", "g", "mock_driver"
	job := &api.Job{ID: &id, Name: &id, Type: &typ, Datacenters: []string{"*"}, TaskGroups: []*api.TaskGroup{{
		Name: &name, Tasks: []*api.Task{{Name: "t", Driver: driver, Config: map[string]any{"run_for": "1h"}}},
	}}}
	if _, _, err := nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, _, err := nomad.Jobs().Deregister(id, true, nil); err != nil {
			t.Error(err)
		}
	}()

	// Each process, started anew, looks at all jobs with fresh eyes.
	for _, c := range []*devcluster.Cluster{cluster, other.Cluster} {
		if err := c.Kill(t.Context(), devcluster.NomadKubelet); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context(), devcluster.NomadKubelet); err != nil {
			t.Fatal(err)
		}
	}
	// A pod that comes and goes in each shows that both have looked.
	for _, p := range []*corev1.Pod{
		await(t, kube, create(t, kube, ns, pod("again", "", mock)), 30*time.Second, "running", phase(corev1.PodRunning)),
	} {
		remove(t, kube, p, nil)
		awaitNoJob(t, nomad, jobID(cluster, p), 20*time.Second)
	}
	again := await(t, other.kube, create(t, other.kube, otherNS, pod("again", "", mock)), 30*time.Second, "running", phase(corev1.PodRunning))
	remove(t, other.kube, again, nil)
	awaitNoJob(t, nomad, jobID(other.Cluster, again), 20*time.Second)

	for _, id := range []string{id, jobID(cluster, mine), jobID(other.Cluster, theirs)} {
		if j, _, err := nomad.Jobs().Info(id, nil); err != nil || *j.Status != "running" {
			t.Errorf("job %s no longer runs: %v", id, err)
		}
	}
	// The cluster whose pod is deleted loses its own job only.
	remove(t, other.kube, theirs, nil)
	awaitNoJob(t, nomad, jobID(other.Cluster, theirs), 20*time.Second)
	if j, _, err := nomad.Jobs().Info(jobID(cluster, mine), nil); err != nil || *j.Status != "running" {
		t.Errorf("the other cluster's job is gone: %v", err)
	}
}

// With access control on, the policy and the roles under deploy/ suffice for
// all that a pod needs, and give no more.
func TestAccessControl(t *testing.T) {
	h := newHybrid(t, ports()+300, func(o *devcluster.Options) { o.ACL, o.NoDocker = true, false })
	ns := namespace(t, h.kube)
	if _, err := h.kube.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "v1"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := pod("acl", "cat /conf/k; echo; sleep 3600", restart(corev1.RestartPolicyAlways), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "conf", MountPath: "/conf"}}
		p.Spec.InitContainers = []corev1.Container{container("one", "true"), container("two", "true")}
		yes := true
		p.Spec.AutomountServiceAccountToken = &yes
	})
	if _, err := h.kube.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), storage("data", "1Gi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	mounting("data")(p)
	p = await(t, h.kube, create(t, h.kube, ns, p), 60*time.Second, "ready", ready)
	eventually(t, 10*time.Second, "the log", func() error {
		data, err := h.kube.CoreV1().Pods(ns).GetLogs(p.Name, &corev1.PodLogOptions{Container: "c"}).DoRaw(t.Context())
		if err == nil && string(data) != "v1\n" {
			err = fmt.Errorf("got %q", data)
		}
		return err
	})
	// What the pod and the node use, with the docker proxy and without it.
	node, used := summaryOf(t, h.Cluster, p, 30*time.Second)
	if used.Network == nil || *used.CPU.UsageCoreNanoSeconds == 0 || node.CPU == nil || *node.CPU.UsageCoreNanoSeconds == 0 {
		t.Errorf("statistics: %+v, %+v", node, used)
	}
	if _, err := h.policyClient(t).Allocations().Stats(&api.Allocation{ID: translate.AllocID(&p.Status)}, nil); err != nil {
		t.Errorf("statistics of the allocation: %v", err)
	}
	remove(t, h.kube, p, nil)
	awaitGone(t, h.kube, p, 20*time.Second)
	awaitNoJob(t, h.nomad, jobID(h.Cluster, p), 20*time.Second)
	if err := h.kube.CoreV1().PersistentVolumeClaims(ns).Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the claim's volume is gone", func() error {
		list, _, err := h.nomad.HostVolumes().List(nil, nil)
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("Nomad has %s", list[0].Name)
		}
		return err
	})
	h.testFollowOverRestart(t, ns)

	wrong := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(wrong, []byte("00000000-0000-0000-0000-000000000000"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, "run", "--config", h.ConfigFile(), "--nomad-token-file", wrong); err == nil || !strings.Contains(out, "deploy/nomad/policy.hcl") {
		t.Errorf("a wrong token: %v\n%s", err, out)
	}

	ours := h.policyClient(t)
	for what, try := range map[string]func() error{
		"read a Variable that is no pod's": func() error { _, _, err := ours.Variables().Peek("secret/of/others", nil); return err },
		"write a Variable that is no pod's": func() error {
			_, _, err := ours.Variables().Update(&api.Variable{Path: "secret/of/others", Items: api.VariableItems{"a": "b"}}, nil)
			return err
		},
		"read a job's Variable that is no pod's": func() error { _, _, err := ours.Variables().Peek("nomad/jobs/theirs", nil); return err },
		"list tokens":                            func() error { _, _, err := ours.ACLTokens().List(nil); return err },
		"write node metadata": func() error {
			_, err := ours.Nodes().Meta().Apply(&api.NodeMetaApplyRequest{Meta: map[string]*string{}}, nil)
			return err
		},
		"change a node's eligibility": func() error { _, err := ours.Nodes().ToggleEligibility("0123", false, nil); return err },
		"make a namespace":            func() error { _, err := ours.Namespaces().Register(&api.Namespace{Name: "x"}, nil); return err },
	} {
		if err := try(); !connect.Denied(err) {
			t.Errorf("the token may %s: %v", what, err)
		}
	}
}

// policyClient has nomad-kubelet's own rights in Nomad.
func (h *hybrid) policyClient(t *testing.T) *api.Client {
	t.Helper()
	token, err := os.ReadFile(h.NomadTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	conf := api.DefaultConfig()
	conf.Address, conf.SecretID = h.NomadAddress(), strings.TrimSpace(string(token))
	client, err := api.NewClient(conf)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// What is wrong with the configuration or a connection is said at once, with
// the remedy, and ends the program.
func TestClearStartErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"no such file":   {[]string{"run", "--config", dir + "/none"}, []string{"read configuration", "no such file"}},
		"unknown key":    {[]string{"run", "--config", file("a.yaml", "virtualNodes:\n- name: x\n  nodepool: y\n")}, []string{"nodepool", "unknown field"}},
		"bad value":      {[]string{"run", "--config", file("b.yaml", "cluster: Not.Good\nvirtualNodes:\n- name: UP\n  network: vxlan\n")}, []string{"cluster:", "virtualNodes[0].name", "virtualNodes[0].network"}},
		"no API server":  {[]string{"run"}, []string{"--kubeconfig"}},
		"bad kubeconfig": {[]string{"run", "--kubeconfig", dir + "/none"}, []string{"find the API server"}},
		"no token file":  {[]string{"run", "--kubeconfig", cluster.KubeconfigFile(), "--nomad-token-file", dir + "/none"}, []string{"nomad.tokenFile"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := program(t, c.args...)
			if err == nil {
				t.Fatalf("it ended well: %s", out)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in: %s", want, out)
				}
			}
		})
	}
}
