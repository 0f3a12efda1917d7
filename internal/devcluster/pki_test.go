package devcluster

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
)

func TestIssue(t *testing.T) {
	p := pki{t.TempDir()}
	if err := p.authority("ca"); err != nil {
		t.Fatal(err)
	}
	if err := p.issue("ca", "server", subject{name: "server", hosts: []string{"127.0.0.1", "localhost"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(p.path("server.crt"), p.path("server.key")); err != nil {
		t.Fatal(err)
	}
	ca, _, err := p.load("ca")
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := p.load("server")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	before, _ := os.ReadFile(p.path("server.crt"))
	if err := p.issue("ca", "server", subject{name: "other"}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(p.path("server.crt")); string(after) != string(before) {
		t.Error("an existing certificate was replaced: a second start would cut off the components that run")
	}
}
