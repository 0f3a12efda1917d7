package kubelet

import (
	"crypto"
	"crypto/tls"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// rights are the subresources of nodes that open the kubelet API, and what each
// of the kubelet's own paths wants of them (pkg/kubelet/server/auth.go).
var rights = map[string][]string{
	"/pods": {"pods", "proxy"}, "/runningpods/": {"pods", "proxy"}, "/healthz": {"healthz", "proxy"}, "/configz": {"configz", "proxy"},
	"/stats/": {"stats"}, "/metrics": {"metrics"}, "/logs/": {"log"}, "/checkpoint/": {"checkpoint"},
	"/containerLogs/": {"proxy"}, "/exec/": {"proxy"}, "/attach/": {"proxy"}, "/portForward/": {"proxy"}, "/run/": {"proxy"},
	"/debug/": {"proxy"},
}

func rightsOf(t *testing.T, path string) []string {
	t.Helper()
	for prefix, subs := range rights {
		if strings.HasPrefix(path, prefix) {
			return subs
		}
	}
	t.Fatalf("what %s takes is not said", path)
	return nil
}

// strangersClient has a certificate of another CA than the API server's.
func strangersClient(t *testing.T) *http.Client {
	t.Helper()
	certPEM, keyPEM, err := certutil.GenerateSelfSignedCertKey("system:masters", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}}}
}

// clientCAFile is a CA that has signed nothing.
func clientCAFile(t *testing.T) string {
	t.Helper()
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := keyutil.ParsePrivateKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := certutil.NewSelfSignedCACert(certutil.Config{CommonName: "ca"}, parsed.(crypto.Signer))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Every route is closed to those without credentials, with those of another CA,
// without rights, and with other rights, and open to those with just its own.
func TestEveryRoute(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	var patterns []string
	u := serve(t, nomad, &pods{pod: testPod()}, func(o *Options) {
		o.Config.ClientCAFile = clientCAFile(t)
		o.List = func() []*corev1.Pod { return nil }
		o.Stats, o.Metrics = someStats{}, Metrics{Resource: gauge("r"), CAdvisor: gauge("c"), Probes: gauge("p")}
		s := &Server{o: *o}
		s.o.Log = hclog.NewNullLogger()
		patterns = s.routes().patterns
	})
	stranger := strangersClient(t)
	do := func(c *http.Client, method, token, path string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, u+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	var all []string
	for _, subs := range rights {
		for _, sub := range subs {
			if !slices.Contains(all, sub) {
				all = append(all, sub)
			}
		}
	}
	if len(patterns) < 20 {
		t.Fatalf("only %d routes", len(patterns))
	}
	for _, pattern := range patterns {
		method, path, found := strings.Cut(pattern, " ")
		if !found {
			method, path = http.MethodGet, pattern
		}
		path = strings.NewReplacer("{namespace}", "default", "{pod}", "p", "{uid}", "1", "{container}", "web",
			"/profile", "/profile?seconds=1").Replace(path)
		if got := do(insecure, method, "", path); got != http.StatusUnauthorized {
			t.Errorf("%s without credentials: %d", pattern, got)
		}
		if got := do(stranger, method, "", path); got != http.StatusUnauthorized {
			t.Errorf("%s with another CA's certificate: %d", pattern, got)
		}
		if got := do(insecure, method, "weak", path); got != http.StatusForbidden {
			t.Errorf("%s without rights: %d", pattern, got)
		}
		for _, sub := range all {
			got := do(insecure, method, "only:"+sub, path)
			if open := got != http.StatusForbidden && got != http.StatusUnauthorized; open != slices.Contains(rightsOf(t, path), sub) {
				t.Errorf("%s with the right to nodes/%s alone: %d", pattern, sub, got)
			}
		}
	}
}

// Who is wrong too often is not asked about any more, while others are served.
func TestFailuresAreLimited(t *testing.T) {
	nomad, _ := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"})
	u := serve(t, nomad, &pods{}, nil)
	refused := 0
	for range failuresBurst + 10 {
		switch got := request(t, t.Context(), "wrong", u+"/healthz").StatusCode; got {
		case http.StatusUnauthorized:
		case http.StatusTooManyRequests:
			refused++
		default:
			t.Fatalf("code %d", got)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}
