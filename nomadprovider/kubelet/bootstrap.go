package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

// bootstrap asks the API server for the serving certificate of a virtual node, as
// the kubelet does with serverTLSBootstrap (pkg/kubelet/certificate/kubelet.go):
// by a CertificateSigningRequest that somebody approves, and again before it
// expires. Until there is one, the self-signed one serves.
type bootstrap struct {
	manager  certificate.Manager
	fallback func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

func newBootstrap(ctx context.Context, kube clientset.Interface, c config.Kubelet, node, nodeIP string,
	fallback func(*tls.ClientHelloInfo) (*tls.Certificate, error)) (*bootstrap, error) {
	var store certificate.Store = &memoryStore{}
	if c.CertDir != "" {
		if err := os.MkdirAll(c.CertDir, 0o700); err != nil {
			return nil, fmt.Errorf("kubelet.certDir: %w", err)
		}
		files, err := certificate.NewFileStore("kubelet-server-"+node, c.CertDir, c.CertDir, "", "")
		if err != nil {
			return nil, fmt.Errorf("kubelet.certDir: %w", err)
		}
		store = files
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}, DNSNames: []string{node}}
	if ip := net.ParseIP(nodeIP); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = append(template.DNSNames, nodeIP)
	}
	m, err := certificate.NewManager(&certificate.Config{
		Ctx: &ctx, Name: node, SignerName: certificatesv1.KubeletServingSignerName, CertificateStore: store,
		ClientsetFn: func(*tls.Certificate) (clientset.Interface, error) { return kube, nil },
		GetTemplate: func() *x509.CertificateRequest { return template },
		GetUsages: func(key any) []certificatesv1.KeyUsage {
			usages := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
			if _, ec := key.(*ecdsa.PrivateKey); !ec {
				usages = append(usages, certificatesv1.UsageKeyEncipherment)
			}
			return usages
		},
	})
	if err != nil {
		return nil, fmt.Errorf("ask for a serving certificate: %w", err)
	}
	return &bootstrap{m, fallback}, nil
}

func (b *bootstrap) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := b.manager.Current(); c != nil {
		return c, nil
	}
	return b.fallback(hello)
}

// memoryStore keeps a certificate as long as the process lives; a later self asks
// for another one.
type memoryStore struct {
	mu   sync.Mutex
	cert *tls.Certificate
}

// Current implements [certificate.Store].
func (s *memoryStore) Current() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert == nil {
		none := certificate.NoCertKeyError("there is no certificate yet")
		return nil, &none
	}
	return s.cert, nil
}

// Update implements [certificate.Store].
func (s *memoryStore) Update(cert, key []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(cert, key)
	if err == nil && c.Leaf == nil {
		err = errors.New("the certificate was not parsed")
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = &c
	return &c, nil
}
