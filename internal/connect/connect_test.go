package connect

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// bare takes away what the environment of the test may say.
func bare(t *testing.T) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "NOMAD_") || strings.HasPrefix(name, "KUBE") {
			t.Setenv(name, "")
			_ = os.Unsetenv(name) // Setenv above has it restored
		}
	}
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://HOST:6443"}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
users: [{name: u, user: {token: t}}]
`

func TestKubernetes(t *testing.T) {
	bare(t)
	if _, err := Kubernetes("", "1"); err == nil || !strings.Contains(err.Error(), "no API server: give --kubeconfig") {
		t.Errorf("nothing given: %v", err)
	}
	given := write(t, strings.Replace(kubeconfig, "HOST", "given", 1))
	c, err := Kubernetes(given, "1.2")
	if err != nil {
		t.Fatal(err)
	}
	if c.Host != "https://given:6443" || c.UserAgent != "nomad-kubelet/1.2" || c.QPS != kubeQPS || !strings.Contains(c.AcceptContentTypes, "json") {
		t.Errorf("%+v", c)
	}
	t.Setenv("KUBECONFIG", write(t, strings.Replace(kubeconfig, "HOST", "env", 1)))
	if c, err := Kubernetes("", "1"); err != nil || c.Host != "https://env:6443" {
		t.Errorf("KUBECONFIG: %v %v", c, err)
	}
	if c, err := Kubernetes(given, "1"); err != nil || c.Host != "https://given:6443" {
		t.Errorf("what is given goes before KUBECONFIG: %v %v", c, err)
	}
	if _, err := Kubernetes(given+"-none", "1"); err == nil || !strings.Contains(err.Error(), "find the API server") {
		t.Errorf("no such file: %v", err)
	}
}

// echo answers with the token and the region of a request, or a status.
func echo(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v1/status/leader":
		_, _ = w.Write([]byte(`"` + r.Header.Get("X-Nomad-Token") + "@" + r.URL.Query().Get("region") + `"`))
	case "/v1/jobs":
		http.Error(w, "Permission denied", http.StatusForbidden)
	case "/v1/nodes":
		http.Error(w, "ACL token not found", http.StatusUnauthorized)
	default:
		http.Error(w, "broken", http.StatusInternalServerError)
	}
}

func TestNomad(t *testing.T) {
	bare(t)
	s := httptest.NewServer(http.HandlerFunc(echo))
	defer s.Close()
	t.Setenv("NOMAD_ADDR", s.URL)
	t.Setenv("NOMAD_TOKEN", "from-env")
	for _, r := range []struct {
		conf config.Nomad
		want string
	}{
		{config.Nomad{}, "from-env@"},
		{config.Nomad{Address: s.URL, Region: "eu", TokenFile: write(t, " from-file\n")}, "from-file@eu"},
	} {
		c, err := Nomad(r.conf)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Status().Leader(); err != nil || got != r.want {
			t.Errorf("got %q %v, want %q", got, err, r.want)
		}
	}
	for _, r := range []struct {
		conf config.Nomad
		want string
	}{
		{config.Nomad{TokenFile: "/none/token"}, "nomad.tokenFile: "},
		{config.Nomad{CAFile: "/none/ca.pem"}, "TLS for Nomad: "},
		{config.Nomad{CertFile: write(t, "x"), KeyFile: write(t, "x")}, "TLS for Nomad: "},
		{config.Nomad{Address: "://"}, "connect to Nomad ://: "},
	} {
		if _, err := Nomad(r.conf); err == nil || !strings.HasPrefix(err.Error(), r.want) {
			t.Errorf("%+v: %v, want %q", r.conf, err, r.want)
		}
	}
}

func TestNomadOverTLS(t *testing.T) {
	bare(t)
	s := httptest.NewTLSServer(http.HandlerFunc(echo))
	defer s.Close()
	c, err := Nomad(config.Nomad{Address: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status().Leader(); err == nil {
		t.Error("a certificate that nobody vouches for is taken")
	}
	ca := write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	if c, err = Nomad(config.Nomad{Address: s.URL, CAFile: ca, TLSServerName: "example.com"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status().Leader(); err != nil {
		t.Error(err)
	}
	if c, err = Nomad(config.Nomad{Address: s.URL, CAFile: ca, TLSServerName: "other.org"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status().Leader(); err == nil {
		t.Error("a certificate for another name is taken")
	}
}

func TestDenied(t *testing.T) {
	bare(t)
	s := httptest.NewServer(http.HandlerFunc(echo))
	defer s.Close()
	c, err := api.NewClient(&api.Config{Address: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, _, forbidden := c.Jobs().List(nil)
	_, _, unauthorized := c.Nodes().List(nil)
	_, _, broken := c.Allocations().List(nil)
	if !Denied(forbidden) || !Denied(unauthorized) || Denied(broken) || Denied(nil) {
		t.Errorf("%v %v %v", Denied(forbidden), Denied(unauthorized), Denied(broken))
	}
}
