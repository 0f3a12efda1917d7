package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// fromDisk boots an image, and is ready when the guest's agent answers.
func fromDisk(image string, annotations ...string) option {
	return func(p *corev1.Pod) {
		p.Annotations = map[string]string{translate.AnnotationVMReady: "agent"}
		for i := 0; i < len(annotations); i += 2 {
			p.Annotations[annotations[i]] = annotations[i+1]
		}
		p.Spec.Containers[0].Image, p.Spec.Containers[0].ReadinessProbe = image, nil
	}
}

// onSecondNode has no cache.
func onSecondNode(p *corev1.Pod) {
	p.Spec.NodeSelector = map[string]string{"example.com/second": "yes"}
	p.Spec.Tolerations = []corev1.Toleration{{Key: "example.com/second", Operator: corev1.TolerationOpExists}}
}

func cpu(request string) option {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse(request)
	}
}

// inUse says whether somebody holds an image of the client's cache.
func inUse(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		t.Fatal(err)
	}
	return err != nil
}

// An image that is fetched, with its checksum, boots as one that the client has. The
// next pod on the client fetches nothing, and the image is held as long as there are
// such pods.
func TestVirtualMachineFromURL(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	var asked atomic.Int32
	files := http.FileServer(http.Dir(devcluster.VMImageDir))
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		files.ServeHTTP(w, r)
	}))
	defer web.Close()
	data, err := os.ReadFile(devcluster.VMImagePath)
	if err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	cached := filepath.Join(cluster.ImageCache(), "images", "sha256-"+sum)
	boot := func(name string, opts ...option) *corev1.Pod {
		start := time.Now()
		p := create(t, kube, ns, vmPod(name, fromDisk(web.URL+"/demo.img",
			translate.AnnotationImageChecksum, "sha256:"+sum), cpu("100m"), func(p *corev1.Pod) {
			for _, o := range opts {
				o(p)
			}
		}))
		p = await(t, kube, p, 180*time.Second, "ready", ready)
		t.Logf("%s: ready after %.1f s", name, time.Since(start).Seconds())
		return p
	}
	p := boot("vm", cpu("1100m"), func(p *corev1.Pod) {
		p.Annotations[translate.AnnotationVMCPUTopology] = "2,1,1"
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("100Mi")}
	})
	out, _, _ := execIn(t, p, "c", nil, "sh", "-c", "cat /sys/block/vda/size; grep 'physical id' /proc/cpuinfo | sort -u | wc -l; cat /sys/block/vda/serial; echo; dd if=/dev/zero of=/dev/vda bs=1M seek=50 count=1 2>/dev/null && sync && echo written")
	if out != fmt.Sprintf("%d\n2\nroot\nwritten\n", 100<<20/512) {
		t.Errorf("the disk and the CPUs: %q", out)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the first pod asked the server %d times", n)
	}
	if !inUse(t, cached) {
		t.Error("nobody holds the image of a VM that runs")
	}
	second := boot("again")
	if n := asked.Load(); n != 1 {
		t.Errorf("after the second pod the server was asked %d times", n)
	}
	for _, image := range []string{devcluster.VMImagePath, cached} {
		if after, err := os.ReadFile(image); err != nil || !bytes.Equal(after, data) {
			t.Errorf("%s has changed: %v", image, err)
		}
	}
	for _, p := range []*corev1.Pod{p, second} {
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 60*time.Second)
	}
}

// diskImage makes a container image of these files, by path, and removes it at the
// test's end.
func diskImage(t *testing.T, name string, files map[string][]byte) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for path, data := range files {
		// KubeVirt's disks are its qemu's.
		if err := w.WriteHeader(&tar.Header{Name: path, Typeflag: tar.TypeReg, Mode: 0o440, Uid: 107, Gid: 107, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image := "disks.example.org/" + name + ":1"
	if err := cluster.ImportImage(t.Context(), image, &buf); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.RemoveImage(context.Background(), image) }) // a pod may be using it still
	return image
}

// A container image with a disk, and nothing else in it, boots: from the client's
// cache, which keeps one copy, or where there is none from the pod's own.
func TestVirtualMachineFromContainerImage(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	data, err := os.ReadFile(devcluster.VMImagePath)
	if err != nil {
		t.Fatal(err)
	}
	data[440]++ // the disk's signature, so that it is no other test's image
	image := diskImage(t, ns, map[string][]byte{"disk/demo.img": data})
	two := diskImage(t, ns+"-two", map[string][]byte{"disk/a": []byte("a"), "disk/b": []byte("b"), "boot/demo.img": data})
	cached := filepath.Join(cluster.ImageCache(), "images", fmt.Sprintf("sha256-%x", sha256.Sum256(data)))
	for _, tc := range []struct {
		name string
		opts []option
		hold bool
	}{
		{"first", []option{fromDisk(image)}, true},
		{"by-path", []option{fromDisk(two, translate.AnnotationVMImagePath, "/boot/demo.img")}, true},
		{"own-copy", []option{fromDisk(image), onSecondNode}, false},
	} {
		start := time.Now()
		p := create(t, kube, ns, vmPod(tc.name, append(tc.opts, cpu("100m"))...))
		p = await(t, kube, p, 180*time.Second, "ready", ready)
		t.Logf("%s: ready after %.1f s", tc.name, time.Since(start).Seconds())
		if st := status(p, "c"); st.Image != p.Spec.Containers[0].Image || st.RestartCount != 0 {
			t.Errorf("%s: %+v", tc.name, st)
		}
		if inUse(t, cached) != tc.hold {
			t.Errorf("%s: the image in the cache is held: %t", tc.name, !tc.hold)
		}
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 60*time.Second)
	}
	if have, err := os.ReadFile(cached); err != nil || !bytes.Equal(have, data) {
		t.Errorf("the image in the cache is another: %v", err)
	}
}

// What is wrong with an image is said as of any that cannot be pulled, and the pod
// waits for what mends it.
func TestVirtualMachineImageErrors(t *testing.T) {
	t.Parallel()
	ns := namespace(t, kube)
	web := httptest.NewServer(http.FileServer(http.Dir(devcluster.VMImageDir)))
	defer web.Close()
	pods := map[string]*corev1.Pod{}
	cases := []struct {
		name string
		opt  option
		want []string
	}{
		{"checksum", fromDisk(web.URL+"/demo.img", translate.AnnotationImageChecksum, "sha256:"+strings.Repeat("0", 64)),
			[]string{"the checksum is sha256:", "nomad-kubelet.io/image-checksum"}},
		{"not-found", fromDisk(web.URL + "/none.img"), []string{"404 Not Found"}},
		{"no-disk", fromDisk(web.URL + "/"), []string{"is no disk image", "a web page"}},
		{"no-file", fromDisk(diskImage(t, ns+"-none", map[string][]byte{"else/demo.img": []byte("x")})),
			[]string{"no file below /disk", "nomad-kubelet.io/vm-image-path"}},
		{"two-files", fromDisk(diskImage(t, ns+"-two", map[string][]byte{"disk/a": []byte("x"), "disk/b": []byte("x")})),
			[]string{"2 files below /disk", "nomad-kubelet.io/vm-image-path"}},
		{"text", fromDisk(diskImage(t, ns+"-text", map[string][]byte{"disk/a": []byte("<html>")})), []string{"/disk/a of the container image", "is no disk image"}},
		{"no-image", fromDisk("127.0.0.1:1/none/none:1"), []string{"Failed to pull"}},
	}
	for _, tc := range cases {
		pods[tc.name] = create(t, kube, ns, vmPod(tc.name, tc.opt, cpu("10m")))
	}
	for _, tc := range cases {
		p := pods[tc.name]
		p = await(t, kube, p, 120*time.Second, "waits", func(p *corev1.Pod) bool {
			w := status(p, "c").State.Waiting
			return w != nil && strings.Contains(w.Reason, "Pull")
		})
		w := status(p, "c").State.Waiting
		for _, want := range tc.want {
			if !strings.Contains(w.Message, want) {
				t.Errorf("%s: %+v, want %q", tc.name, w, want)
			}
		}
		if p.Status.Phase != corev1.PodPending {
			t.Errorf("%s: phase %s", tc.name, p.Status.Phase)
		}
		if message := eventOf(t, kube, p, "Failed"); !strings.Contains(message, tc.want[0]) {
			t.Errorf("%s: event %q", tc.name, message)
		}
		t.Logf("%s: %s: %s", tc.name, w.Reason, w.Message)
		remove(t, kube, p, nil)
		awaitGone(t, kube, p, 30*time.Second)
	}
}
