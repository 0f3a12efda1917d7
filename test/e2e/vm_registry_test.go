package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// An image comes by https, with its checksum, from a server whose certificate the client
// knows. Until it does the pod waits, and says why.
func TestVirtualMachineFromHTTPS(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	data := ownImage(t, 1)
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }))
	cert, public := certificate(t)
	web.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	web.StartTLS()
	defer web.Close()
	p := create(t, kube, ns, vmPod("vm", fromDisk(web.URL+"/own.img",
		translate.AnnotationImageChecksum, fmt.Sprintf("sha256:%x", sha256.Sum256(data))), cpu("100m")))
	p = await(t, kube, p, 60*time.Second, "distrusts the server", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && strings.Contains(w.Reason, "Pull") && strings.Contains(w.Message, "certificate signed by unknown authority")
	})
	known := filepath.Join("/etc/ssl/certs", ns+".pem")
	t.Cleanup(func() { _ = os.Remove(known) })
	if err := os.WriteFile(known, public, 0o644); err != nil {
		t.Fatal(err)
	}
	p = await(t, kube, p, 180*time.Second, "ready", ready)
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 60*time.Second)
}

// A disk in a container image of a private registry is pulled with the pod's
// imagePullSecrets, and not without.
func TestVirtualMachineFromPrivateRegistry(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	const user, password = "puller", "open-sesame-42"
	store := registry.New()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="disks"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	}))
	defer web.Close()
	host := strings.TrimPrefix(web.URL, "http://")
	image := host + "/disks/" + ns + ":1"
	push(t, store, "disks/"+ns, map[string][]byte{"disk/own.img": ownImage(t, 2)})
	t.Cleanup(func() { _ = cluster.RemoveImage(context.Background(), image) })

	without := create(t, kube, ns, vmPod("without", fromDisk(image), cpu("10m")))
	await(t, kube, without, 60*time.Second, "refused by the registry", func(p *corev1.Pod) bool {
		w := status(p, "c").State.Waiting
		return w != nil && strings.Contains(w.Reason, "Pull") && strings.Contains(w.Message, "no basic auth credentials")
	})
	remove(t, kube, without, nil)
	awaitGone(t, kube, without, 30*time.Second)

	config := fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, host, user, password)
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "disks"}, Type: corev1.SecretTypeDockerConfigJson, StringData: map[string]string{corev1.DockerConfigJsonKey: config},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := create(t, kube, ns, vmPod("with", fromDisk(image), cpu("100m"), func(p *corev1.Pod) {
		p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "disks"}}
	}))
	p = await(t, kube, p, 180*time.Second, "ready", ready)
	job, _, err := nomad.Jobs().Info(jobID(cluster, p), nil)
	if err != nil || strings.Contains(deep(t, job), password) {
		t.Errorf("the job holds the password, or is not there: %v", err)
	}
	if out := kubectl(t, "-n", ns, "events"); strings.Contains(out, password) {
		t.Errorf("the events hold the password: %s", out)
	}
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 60*time.Second)
}

// ownImage is the demonstration's disk with a signature that no other test's has.
func ownImage(t *testing.T, mark byte) []byte {
	t.Helper()
	data, err := os.ReadFile(devcluster.VMImagePath)
	if err != nil {
		t.Fatal(err)
	}
	data[441] += mark
	return data
}

// push puts a container image of these files, by path, into a registry, with the tag 1.
func push(t *testing.T, store http.Handler, repository string, files map[string][]byte) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for path, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o444, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	var manifest, config []byte
	if err == nil {
		manifest, err = img.RawManifest()
	}
	if err == nil {
		config, err = img.RawConfigFile()
	}
	if err != nil {
		t.Fatal(err)
	}
	put := func(method, path string, body io.Reader) {
		t.Helper()
		r, answer := httptest.NewRequest(method, "/v2/"+repository+path, body), httptest.NewRecorder()
		r.Header.Set("Content-Type", string(types.DockerManifestSchema2))
		if store.ServeHTTP(answer, r); answer.Code != http.StatusCreated {
			t.Fatalf("%s: %d %s", path, answer.Code, answer.Body)
		}
	}
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	put(http.MethodPost, "/blobs/uploads/?digest="+digest.String(), blob)
	put(http.MethodPost, fmt.Sprintf("/blobs/uploads/?digest=sha256:%x", sha256.Sum256(config)), bytes.NewReader(config))
	put(http.MethodPut, "/manifests/1", bytes.NewReader(manifest))
}

// certificate is a server's on this machine, which nobody has signed but itself.
func certificate(t *testing.T) (cert tls.Certificate, public []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "images"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "images"}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
