package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
)

// testServingCertificate: the kubelet API serves a certificate of the cluster's
// CA once its request is approved, and one of its own until then.
func (h *hybrid) testServingCertificate(t *testing.T) {
	cfg, err := h.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cfg.CAData) {
		t.Fatal("the kubeconfig holds no CA")
	}
	dial := func() error {
		conn, err := tls.Dial("tcp", h.KubeletAddress(), &tls.Config{RootCAs: roots})
		if err != nil {
			return err
		}
		return conn.Close()
	}
	var unknown x509.UnknownAuthorityError
	if err := dial(); !errors.As(err, &unknown) {
		t.Errorf("before the approval: %v", err)
	}
	csrs := h.kube.CertificatesV1().CertificateSigningRequests()
	eventually(t, 30*time.Second, "a request for a certificate", func() error {
		list, err := csrs.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.signerName=" + certificatesv1.KubeletServingSignerName})
		if err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%d requests: %v", len(list.Items), err)
		}
		r := list.Items[0]
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test",
		})
		_, err = csrs.UpdateApproval(t.Context(), r.Name, &r, metav1.UpdateOptions{})
		return err
	})
	eventually(t, 30*time.Second, "a certificate of the cluster's CA for "+config.DefaultVirtualNode, dial)
}
