package kubelet

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	certutil "k8s.io/client-go/util/cert"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

// servingCertificate returns the certificate for a handshake: the configured
// files, read again when they change, or a self-signed one that lives as long
// as the process, as the kubelet's default without a --cert-dir.
func servingCertificate(c config.Kubelet, node, nodeIP string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if c.TLSCertFile != "" {
		f := &certFiles{cert: c.TLSCertFile, key: c.TLSKeyFile}
		if _, err := f.get(nil); err != nil {
			return nil, err
		}
		return f.get, nil
	}
	var ips []net.IP
	if ip := net.ParseIP(nodeIP); ip != nil {
		ips = append(ips, ip)
	}
	certPEM, keyPEM, err := certutil.GenerateSelfSignedCertKey(node, ips, nil)
	if err != nil {
		return nil, fmt.Errorf("make a self-signed serving certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("make a self-signed serving certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }, nil
}

// certFiles is a pair of files that may be replaced while in use.
type certFiles struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	stamp  [2]time.Time
}

func (f *certFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var stamp [2]time.Time
	for i, path := range []string{f.cert, f.key} {
		if st, err := os.Stat(path); err == nil {
			stamp[i] = st.ModTime()
		}
	}
	if f.loaded != nil && stamp == f.stamp {
		return f.loaded, nil
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		if f.loaded != nil { // half replaced: the old pair still serves
			return f.loaded, nil
		}
		return nil, fmt.Errorf("load the serving certificate: %w", err)
	}
	f.loaded, f.stamp = &c, stamp
	return f.loaded, nil
}
