package translate

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Who has the pod's address: as the row says, unless the pod wants less, and only
// where there is one.
func TestVMNetwork(t *testing.T) {
	for _, tc := range []struct {
		row, asked  string
		hostNetwork bool
		tap         bool
		refused     string
	}{
		{row: "", tap: false},
		{row: "user", tap: false},
		{row: "tap", tap: true},
		{row: "tap", asked: "tap", tap: true},
		{row: "tap", asked: "user", tap: false},
		{row: "user", asked: "user", tap: false},
		{row: "tap", hostNetwork: true, tap: false},
		{row: "tap", asked: "tap", hostNetwork: true, refused: "no address of its own"},
		{row: "user", asked: "tap", refused: "set config.network: tap"},
		{row: "", asked: "tap", refused: "set config.network: tap"},
		{row: "tap", asked: "bridge", refused: "neither user nor tap"},
	} {
		in := testInputs()
		row := Runtime{Driver: "qemu", Config: map[string]any{}}
		if tc.row != "" {
			row.Config[RowNetwork] = tc.row
		}
		in.Node.Runtimes = map[string]Runtime{"nomad-vm": row}
		in.Node.HostAccess = HostAccess{HostNetwork: true, ImagePaths: []string{"/img"}}
		pod := &corev1.Pod{Spec: corev1.PodSpec{
			RuntimeClassName: new("nomad-vm"), HostNetwork: tc.hostNetwork, Containers: []corev1.Container{{Name: "vm", Image: "/img/a"}},
		}}
		pod.Name, pod.Namespace, pod.UID = "vm", "default", "1"
		if tc.asked != "" {
			pod.Annotations = map[string]string{AnnotationVMNetwork: tc.asked}
		}
		res, err := Job(pod, in)
		if tc.refused != "" {
			var refused *RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%+v: %v", tc, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		vm, companion := res.Job.TaskGroups[0].Tasks[0], res.Job.TaskGroups[0].Tasks[1]
		tap := slices.ContainsFunc(vm.Config["args"].([]string), func(a string) bool { return strings.HasPrefix(a, "tap,") })
		if _, ours := vm.Config[RowNetwork]; ours {
			t.Errorf("%+v: the driver is given what is not its own", tc)
		}
		if tap != tc.tap || (res.Files.Guest != "") != tc.tap || (companion.Config["devices"] != nil) != tc.tap {
			t.Errorf("%+v: tap %v, guest %q, companion %v", tc, tap, res.Files.Guest, companion.Config)
		}
	}
}
