package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
)

// runTranslate executes the command on a manifest from standard input.
func runTranslate(t *testing.T, input string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := newTranslateCommand()
	var out, errOut bytes.Buffer
	cmd.SetIn(strings.NewReader(input))
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(append([]string{"-f", "-"}, args...))
	err = cmd.Execute()
	return out.String(), errOut.String(), err
}

const workloads = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {A: "1"}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {password: hunter2}
---
# only a comment
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web
        envFrom: [{configMapRef: {name: conf}}]
        env: [{name: P, valueFrom: {secretKeyRef: {name: sec, key: password}}}]
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: ds, namespace: other}
  spec: {selector: {}, template: {spec: {containers: [{name: c, image: "c:1"}]}}}
- apiVersion: batch/v1
  kind: Job
  metadata: {name: once}
  spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "c:1"}]}}}
- apiVersion: batch/v1
  kind: CronJob
  metadata: {name: daily}
  spec: {schedule: "0 0 * * *", jobTemplate: {spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: "c:1"}]}}}}}
---
{"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "rs"}, "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": "c:1"}]}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec: {serviceName: db, selector: {}, template: {spec: {containers: [{name: c, image: "c:1"}]}}}
---
apiVersion: example.org/v1
kind: Thing
`

func TestTranslateWorkloads(t *testing.T) {
	out, errOut, err := runTranslate(t, workloads, "-o", "json")
	if err != nil {
		t.Fatalf("%v\n%s", err, errOut)
	}
	if strings.Contains(out+errOut, "hunter2") {
		t.Error("the value of a Secret is shown")
	}
	if !strings.Contains(errOut, "skipped: example.org/v1 Thing") {
		t.Errorf("stderr does not name what was skipped:\n%s", errOut)
	}
	got := map[string]string{}
	ids := map[string]bool{}
	dec := json.NewDecoder(strings.NewReader(out))
	for dec.More() {
		var j struct{ Job api.Job }
		if err := dec.Decode(&j); err != nil {
			t.Fatal(err)
		}
		got[*j.Job.Name] = *j.Job.Type
		ids[*j.Job.ID] = true
		if *j.Job.Name == "default/web-x" {
			task := j.Job.TaskGroups[0].Tasks[0]
			if task.Config["force_pull"] != true {
				t.Error("an image without a tag is not pulled always")
			}
			if data := *task.Templates[len(task.Templates)-1].EmbeddedTmpl; !strings.Contains(data, "\nP={{") || !strings.Contains(data, "}}A={{") {
				t.Errorf("env template is %q", data)
			}
		}
	}
	want := map[string]string{
		"default/web-x": "service", "other/ds-x": "service", "default/once-x": "batch", "default/daily-x": "batch",
		"default/rs-x": "service", "default/db-0": "service",
	}
	for name, kind := range want {
		if got[name] != kind {
			t.Errorf("job %s is %q, want %q", name, got[name], kind)
		}
	}
	if len(got) != len(want) || len(ids) != len(want) {
		t.Errorf("jobs %v with %d IDs, want %d", got, len(ids), len(want))
	}
}

func TestTranslateRefuses(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {hostPID: true, containers: [{name: c, image: "c:1", securityContext: {privileged: true}}]}}`
	out, errOut, err := runTranslate(t, pod)
	if err == nil {
		t.Fatal("no error for a refused pod")
	}
	for _, want := range []string{"spec.hostPID", "hostAccess.hostPID", "spec.containers[c].securityContext.privileged"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("stderr lacks %q:\n%s", want, errOut)
		}
	}
	if out != "" {
		t.Errorf("a job is shown: %s", out)
	}
}

func TestTranslateNotes(t *testing.T) {
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: "c:1", stdin: true, stdinOnce: true}]}}`
	out, _, err := runTranslate(t, pod, "-o", "notes")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, "Pod default/p: note: spec.containers[c].stdinOnce: ") {
		t.Errorf("notes are %q", out)
	}
	hcl, errOut, err := runTranslate(t, pod)
	if err != nil || !strings.HasPrefix(hcl, `job "k8s-dryrun-`) || !strings.Contains(errOut, "stdinOnce") {
		t.Errorf("hcl %q, stderr %q, error %v", hcl, errOut, err)
	}
}

func TestTranslateBadInput(t *testing.T) {
	for name, c := range map[string]struct {
		input string
		args  []string
		want  string
	}{
		"unknown field":  {input: `{apiVersion: v1, kind: Pod, spec: {contaners: []}}`, want: "contaners"},
		"nothing":        {input: "", want: "no pods"},
		"no YAML":        {input: "{", want: "translate -"},
		"output":         {input: workloads, args: []string{"-o", "xml"}, want: "xml"},
		"missing config": {input: workloads, args: []string{"--config", "/none"}, want: "/none"},
		"unknown node":   {input: workloads, args: []string{"--node", "none"}, want: "none"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := runTranslate(t, c.input, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
