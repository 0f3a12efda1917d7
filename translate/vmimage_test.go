package translate

import (
	"strings"
	"testing"
)

func TestVMImage(t *testing.T) {
	for _, tc := range []struct{ image, path, sum, cache, want string }{
		{"quay.io/containerdisks/debian:12", "/disk.img", "", "/cache", ""},
		{"debian@sha256:" + strings.Repeat("a", 64), "", "", "", ""},
		{"localhost:5000/debian", "", "", "", ""},
		{"docker://debian:12", "", "", "", "without docker:// before it"},
		{"oci://debian:12", "", "", "", "neither the path"},
		{"./debian.img", "", "", "", "neither the path"},
		{"Debian 12", "", "", "", "neither the path"},
		{"debian:12", "disk.img", "", "", "not the absolute path of a file in the container image"},
		{"debian:12", "/disk/../img", "", "", "not the absolute path of a file in the container image"},
		{"debian:12", "", "sha256:0", "", "name a container image by its digest"},
		{"/var/lib/images/debian.img", "/disk/a", "", "", "is a file of a container image"},
		{"https://example.org/a.img", "/disk/a", "", "/cache", "is a file of a container image"},
		{"https://example.org/a.img", "", "sha512:" + strings.Repeat("A", 128), "/cache", ""},
		{"https://example.org/a.img", "", "sha256:" + strings.Repeat("0", 63), "/cache", "is no checksum"},
		{"https://example.org/a.img", "", strings.Repeat("0", 64), "/cache", "is no checksum"},
		{"https://example.org/a b", "", "", "/cache", "is not a URL"},
	} {
		pod, in := readCase(t, "testdata/vm-container-disk")
		in.Node.HostAccess = HostAccess{ImageCache: tc.cache, ImagePaths: []string{"/var/lib/images"}}
		pod.Spec.Containers[0].Image = tc.image
		pod.Annotations = map[string]string{}
		for name, value := range map[string]string{AnnotationVMImagePath: tc.path, AnnotationImageChecksum: tc.sum} {
			if value != "" {
				pod.Annotations[name] = value
			}
		}
		_, err := Job(pod, in)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}
