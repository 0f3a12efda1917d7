package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"time"
)

// kubectl runs it as a user would.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryKubectl(t, "", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// tryKubectl is handed an input and may fail.
func tryKubectl(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(), "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.KubeconfigFile())
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The examples run as they stand.
func TestExamples(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	kubectl(t, "-n", ns, "apply", "-f", "../../examples/hello", "-f", "../../examples/vm")
	kubectl(t, "-n", ns, "rollout", "status", "deployment/hello", "--timeout=90s")
	kubectl(t, "-n", ns, "wait", "--for=condition=complete", "job/hello-once", "--timeout=90s")
	kubectl(t, "-n", ns, "wait", "--for=jsonpath={.status.phase}=Running", "pod/hello-vm", "--timeout=90s")
	eventually(t, 20*time.Second, "the Deployment's greeting", func() error {
		if out := kubectl(t, "-n", ns, "logs", "--selector=app=hello", "--tail=2"); strings.Count(out, "Hello from Nomad") != 3 {
			return fmt.Errorf("got %q", out)
		}
		return nil
	})
	if out := kubectl(t, "-n", ns, "exec", "deploy/hello", "--", "sh", "-c", "echo $((6*7))"); out != "42\n" {
		t.Errorf("exec: %q", out)
	}
	kubectl(t, "-n", ns, "delete", "--wait", "--timeout=60s", "-f", "../../examples/hello", "-f", "../../examples/vm")
}

// The virtual machines behind a Service are reached through it, and follow their
// ConfigMap.
func TestExampleVMService(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	kubectl(t, "-n", ns, "apply", "-f", "../../examples/vm-service")
	kubectl(t, "-n", ns, "rollout", "status", "deployment/vms", "--timeout=180s")
	page := func() string {
		out, err := tryKubectl(t, "", "get", "--raw", "/api/v1/namespaces/"+ns+"/services/vms:http/proxy/")
		if err != nil {
			return err.Error() + out
		}
		return out
	}
	if out := page(); !strings.Contains(out, "a Deployment of virtual machines") {
		t.Errorf("page %q", out)
	}
	if out := kubectl(t, "-n", ns, "logs", "deployment/vms"); !strings.Contains(out, "the page is on port 80") {
		t.Errorf("log %q", out[max(0, len(out)-300):])
	}
	kubectl(t, "-n", ns, "patch", "configmap", "vms", "--patch", `{"data":{"index.html":"changed"}}`)
	eventually(t, 60*time.Second, "the change on every VM", func() error {
		for range 6 {
			if out := page(); out != "changed" {
				return fmt.Errorf("page %q", out)
			}
		}
		return nil
	})
	kubectl(t, "-n", ns, "delete", "--wait", "--timeout=90s", "-f", "../../examples/vm-service")
}

// The virtual machine with a disk that outlives it counts its starts there.
func TestExampleVMPersistent(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	kubectl(t, "-n", ns, "apply", "-f", "../../examples/vm-persistent")
	for n := 1; n <= 2; n++ {
		kubectl(t, "-n", ns, "rollout", "status", "statefulset/vm-persistent", "--timeout=180s")
		eventually(t, 60*time.Second, "the count", func() error {
			if out := kubectl(t, "-n", ns, "logs", "vm-persistent-0"); !strings.Contains(out, fmt.Sprintf("start number %d with this disk", n)) {
				return fmt.Errorf("log %q", out[max(0, len(out)-500):])
			}
			return nil
		})
		kubectl(t, "-n", ns, "delete", "pod", "vm-persistent-0", "--wait", "--timeout=60s")
	}
	kubectl(t, "-n", ns, "delete", "--wait", "--timeout=90s", "-f", "../../examples/vm-persistent")
	kubectl(t, "-n", ns, "delete", "pvc", "data-vm-persistent-0", "--wait", "--timeout=90s")
}

// The doctor finds nothing that puts pods at risk in the hybrid, which runs with
// the settings of deploy/nomad, and does in one that lacks them.
func TestDoctor(t *testing.T) {
	t.Parallel()
	out, err := program(t, "doctor", "--config", cluster.ConfigFile())
	if err != nil || !strings.Contains(out, " 0 fail") {
		t.Errorf("%v\n%s", err, out)
	}
	config, err := os.ReadFile(cluster.ConfigFile())
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "config.yaml")
	text := strings.Replace(string(config), "name: nomad\n", "name: nomad\n  nodePool: nowhere\n", 1)
	if err := os.WriteFile(wrong, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := program(t, "doctor", "--config", wrong); err == nil || !strings.Contains(out, "nowhere") {
		t.Errorf("an unknown node pool: %v\n%s", err, out)
	}
}

// Nomad takes the jobs that deploy/nomad holds.
func TestDeployedJobs(t *testing.T) {
	t.Parallel()
	jobs, err := filepath.Glob("../../deploy/nomad/*.nomad.hcl")
	if err != nil || len(jobs) == 0 {
		t.Fatalf("no jobs (%v)", err)
	}
	for _, job := range jobs {
		out, err := exec.CommandContext(t.Context(), filepath.Join(binDir(), "nomad"), "job", "validate", "-address", cluster.NomadAddress(), job).CombinedOutput()
		if err != nil || strings.Contains(string(out), "Warning") {
			t.Errorf("%s: %v\n%s", job, err, out)
		}
	}
}
