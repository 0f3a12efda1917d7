package translate

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func boundTo(paths ...string) map[string]Claim {
	return map[string]Claim{"data": {
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Paths: paths,
		Volume: &corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: DriverHostVolume, VolumeHandle: "pvc-1"}},
		},
	}}
}

// An ephemeral container finds a claim where its client has it.
func TestEphemeralClaims(t *testing.T) {
	pod := debugged(func(p *corev1.Pod, ec *corev1.EphemeralContainer) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
		}}}
		ec.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	})
	in := testInputs()
	in.Claims = boundTo("/opt/nomad/1")
	res, err := EphemeralJob(pod, "dbg", runningAs("web"), in)
	if err != nil {
		t.Fatal(err)
	}
	mounts, _ := res.Job.TaskGroups[0].Tasks[0].Config["mount"].([]map[string]any)
	found := slices.ContainsFunc(mounts, func(m map[string]any) bool { return m["source"] == "/opt/nomad/1" && m["target"] == "/data" })
	if !found || len(res.Job.TaskGroups[0].Volumes) > 0 {
		t.Errorf("mounts %v, volumes %v", mounts, res.Job.TaskGroups[0].Volumes)
	}
	in.Claims = boundTo()
	var missing *MissingError
	if _, err := EphemeralJob(pod, "dbg", runningAs("web"), in); !errors.As(err, &missing) || len(missing.Claims) != 1 {
		t.Errorf("no client has it: %v", err)
	}
	in.Claims = boundTo("/a", "/b")
	if _, err := EphemeralJob(pod, "dbg", runningAs("web"), in); err == nil || !strings.Contains(err.Error(), "different places") {
		t.Errorf("two places: %v", err)
	}
}

// A VM's disk has to have one place, a size, and a file to lie in.
func TestVMClaimRefusals(t *testing.T) {
	for want, change := range map[string]func(*Claim){
		"different places":                  func(c *Claim) { c.Paths = []string{"/a", "/b"} },
		"has no capacity":                   func(c *Claim) { c.Volume.Capacity = nil },
		"of CSI driver " + DriverHostVolume: func(c *Claim) { c.Volume.CSI.Driver = DriverCSI },
		"cannot be used":                    func(c *Claim) { c.Paths = []string{"/a\n/b"} },
		"no Nomad client":                   func(c *Claim) { c.Paths = nil },
		"is a block device":                 func(c *Claim) { c.Volume.VolumeMode = new(corev1.PersistentVolumeBlock) },
	} {
		pod, in := readCase(t, "testdata/vm-claims")
		c := boundTo("/opt/nomad/1")["data"]
		change(&c)
		in.Claims["data"] = c
		if _, err := Job(pod, in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// Without a cluster the job of a claim is shown with what is not known.
func TestOfflineClaims(t *testing.T) {
	for _, dir := range []string{"testdata/claims", "testdata/vm-claims"} {
		pod, in := readCase(t, dir)
		in.Claims, in.Offline = nil, true
		res, err := Job(pod, in)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Job.TaskGroups[0].Volumes) == 0 || !slices.ContainsFunc(res.Notes, func(n Note) bool { return strings.Contains(n.Message, "is not known here") }) {
			t.Errorf("%s: %+v", dir, res.Notes)
		}
	}
}
