package translate

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestVMEnd(t *testing.T) {
	for _, tc := range []struct {
		exit    int32
		told    string
		code    int32 // -1 for none
		message string
	}{
		{0, "0\n", 0, ""},
		{3, "3\nlast\nwords", 3, "last\nwords"},
		{7, "6\r\n", 6, ""},
		{255, "254\n", 254, ""},
		{1, "6\n", 6, ""},     // crashed, since nobody saw to the code
		{137, "6\n", -1, ""},  // killed
		{0, "6\n", -1, ""},    // shut down by somebody else
		{1, "0\n", -1, ""},    // crashed
		{0, "", -1, ""},       // told nothing
		{3, "3", -1, ""},      // half a line
		{3, "300\n", -1, ""},  // no exit code
		{3, "-3\n", -1, ""},   // nor this
		{3, "x3\nm", -1, ""},  // nor this
		{3, "\n3\nm", -1, ""}, // nor this
	} {
		code, message := VMEnd(tc.exit, tc.told)
		if got := code; tc.code < 0 && got != nil || tc.code >= 0 && (got == nil || *got != tc.code) || message != tc.message {
			t.Errorf("%d, %q: %v, %q", tc.exit, tc.told, code, message)
		}
	}
}

func TestVMSerial(t *testing.T) {
	seen := map[string]bool{"root": true, "seed": true, "pod": true}
	for _, name := range []string{"data", "pod", "root", "seed", strings.Repeat("a", 20), strings.Repeat("a", 21), strings.Repeat("a", 63)} {
		got := vmSerial(name)
		if len(got) > 20 || seen[got] || len(name) == 20 && got != name {
			t.Errorf("%s: %s", name, got)
		}
		seen[got] = true
	}
}

func TestVMMemory(t *testing.T) {
	for _, tc := range []struct {
		request, limit string
		byDefault      int
		want           string
	}{
		{request: "17Mi"},
		{request: "16Mi", want: "spec.containers[vm].resources.requests.memory: 16Mi is too little for a machine to boot: give it 17Mi"},
		{request: "128", want: "128 is too little"}, // bytes, by mistake
		{limit: "8Mi", want: "8Mi is too little"},
		{byDefault: 128},
		{byDefault: 10, want: "10Mi, the node's defaultMemoryMB, is too little"},
		{request: "3999872Mi"},
		{request: "3999873Mi", want: "3999873Mi is more than Nomad's qemu driver takes: give it at most 3999872Mi"},
	} {
		pod, in := readCase(t, "testdata/vm-kernel")
		in.Node.DefaultMemoryMB = tc.byDefault
		r := &pod.Spec.Containers[0].Resources
		r.Requests, r.Limits = corev1.ResourceList{}, corev1.ResourceList{}
		if tc.request != "" {
			r.Requests[corev1.ResourceMemory] = resource.MustParse(tc.request)
		}
		if tc.limit != "" {
			// As the API server defaults it.
			r.Limits[corev1.ResourceMemory], r.Requests[corev1.ResourceMemory] = resource.MustParse(tc.limit), resource.MustParse(tc.limit)
		}
		if _, err := Job(pod, in); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestVMAnnotations(t *testing.T) {
	for _, tc := range []struct{ annotation, value, cpu, want string }{
		{AnnotationVMCPUTopology, "2, 2,1", "4", ""},
		{AnnotationVMCPUTopology, "1,1,2", "1500m", ""},
		{AnnotationVMCPUTopology, "2,2,1", "2", "comes to 4 CPUs, and the container's request to 2"},
		{AnnotationVMCPUTopology, "2,2", "4", "is not sockets,cores,threads"},
		{AnnotationVMCPUTopology, "0,1,1", "1", "is not sockets,cores,threads"},
		{AnnotationVMCPUTopology, "1,1,x", "1", "is not sockets,cores,threads"},
		{AnnotationVMCPUTopology, "", "1", "is not sockets,cores,threads"},
		{AnnotationVMFirmware, "/etc/OVMF.fd", "1", "hostAccess.imagePaths"},
		{AnnotationVMFirmware, "", "1", "not an absolute path"},
		{AnnotationVMFirmware, "/var/lib/images/OVMF.fd", "1", ""},
		{AnnotationVMReady, "agent", "1", ""},
		{AnnotationVMReady, "cloud-init", "1", ""},
		{AnnotationVMReady, "", "1", "neither agent nor cloud-init"},
	} {
		pod, in := readCase(t, "testdata/vm-kernel")
		pod.Annotations[tc.annotation] = tc.value
		pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(tc.cpu)}
		_, err := Job(pod, in)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s %q: %v", tc.annotation, tc.value, err)
		}
		c := WithReadiness(pod, &pod.Spec.Containers[0])
		if has := c.StartupProbe != nil; has != (tc.want == "" && tc.annotation == AnnotationVMReady) || pod.Spec.Containers[0].StartupProbe != nil {
			t.Errorf("%s %q: startup probe %v", tc.annotation, tc.value, c.StartupProbe)
		}
	}
	for _, name := range []string{"live-migration", "snapshot", "hotplug", "machine-type"} {
		pod, in := readCase(t, "testdata/vm-kernel")
		pod.Annotations[annotationVM+name] = "pc"
		if _, err := Job(pod, in); err == nil || !strings.Contains(err.Error(), annotationVM+name+"]: is not known") {
			t.Errorf("%s: %v", name, err)
		}
	}
	pod, in := readCase(t, "testdata/vm-kernel")
	pod.Annotations[AnnotationVMReady] = "agent"
	pod.Spec.Containers[0].StartupProbe = &corev1.Probe{}
	if _, err := Job(pod, in); err == nil || !strings.Contains(err.Error(), "beside a startup probe") {
		t.Errorf("%v", err)
	}
}
