package netbridge

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// kubeProxyJob runs deploy/nomad/kube-proxy.nomad.hcl as it says itself how to, in
// place of the process that the demo has.
func kubeProxyJob(t *testing.T, c *devcluster.Cluster, kube *kubernetes.Clientset) {
	t.Helper()
	const image = "registry.k8s.io/kube-proxy:v1.35.4"
	if err := c.ImportImage(t.Context(), image, withLibraries(t, map[string]string{"usr/local/bin/kube-proxy": "kube-proxy", "usr/sbin/nft": "nft"})); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), devcluster.KubeProxy); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "-n", "kube-system", "create", "serviceaccount", "nomad-kube-proxy")
	kubectl(t, c, "create", "clusterrolebinding", "nomad-kube-proxy", "--clusterrole=system:node-proxier", "--serviceaccount=kube-system:nomad-kube-proxy")
	token, err := kube.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "nomad-kube-proxy", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The real node's kubeconfig has the API server's address as others reach it.
	kc, err := clientcmd.LoadFromFile(filepath.Join(c.Dir(), "pki", "on-prem-kubelet.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	cluster := kc.Clusters[kc.Contexts[kc.CurrentContext].Cluster]
	ca, err := os.ReadFile(cluster.CertificateAuthority)
	if err != nil {
		t.Fatal(err)
	}
	nomad, err := c.NomadClient()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = nomad.Variables().Create(&nomadapi.Variable{Path: "nomad/jobs/kube-proxy", Items: nomadapi.VariableItems{
		"server": cluster.Server, "ca": base64.StdEncoding.EncodeToString(ca), "token": token.Status.Token,
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hcl, err := os.ReadFile("../../deploy/nomad/kube-proxy.nomad.hcl")
	if err != nil {
		t.Fatal(err)
	}
	job, err := nomad.Jobs().ParseHCLOpts(&nomadapi.JobsParseRequest{JobHCL: string(hcl), Variables: "virtual_node = \"" + devcluster.VirtualNode + "\""})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := nomad.Jobs().Register(job, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		allocs, _, _ := nomad.Jobs().Allocations("kube-proxy", true, nil)
		for _, a := range allocs {
			for _, s := range a.TaskStates {
				for _, e := range s.Events {
					t.Logf("kube-proxy's job: %s %s", e.Type, e.DisplayMessage)
				}
			}
		}
	})
	eventually(t, "kube-proxy as a job", time.Minute, func() bool {
		allocs, _, err := nomad.Jobs().Allocations("kube-proxy", false, nil)
		return err == nil && len(allocs) == 1 && allocs[0].ClientStatus == nomadapi.AllocClientStatusRunning
	})
}

var libraryLine = regexp.MustCompile(`(/\S+) \(0x`)

// withLibraries is a root file system of programs of this machine and what they link to.
func withLibraries(t *testing.T, programs map[string]string) io.Reader {
	t.Helper()
	// Without it nft calls TCP 6, and kube-proxy takes the rules that are there for
	// somebody else's.
	files := map[string]string{"etc/protocols": "/etc/protocols"}
	for name, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = path
		out, _ := exec.Command("ldd", path).Output() // an error for a static program
		for _, m := range libraryLine.FindAllSubmatch(out, -1) {
			files[string(m[1][1:])] = string(m[1])
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, path := range files {
		data, err := os.ReadFile(path)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))})
		}
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}
