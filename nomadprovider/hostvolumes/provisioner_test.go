package hostvolumes

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

func claimOf(modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "ns"}}
	c.Spec.AccessModes = modes
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	return c
}

func optionsFor(name, node string, parameters map[string]string, modes ...corev1.PersistentVolumeAccessMode) controller.ProvisionOptions {
	policy := corev1.PersistentVolumeReclaimDelete
	return controller.ProvisionOptions{
		PVName: name, SelectedNodeName: node, PVC: claimOf(modes...),
		StorageClass: &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, Parameters: parameters, ReclaimPolicy: &policy},
	}
}

// What is made, found again and deleted is Nomad's own.
func TestProvisionOnNomad(t *testing.T) {
	agent := nomadtest.Start(t, "")
	nodes, _, err := agent.Client.Nodes().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	here := func() []Client {
		return []Client{
			{ID: "00000000-0000-4000-8000-000000000000", Name: "gone", Plugins: []string{"mkdir"}},
			{ID: nodes[0].ID, Name: nodes[0].Name, Plugins: []string{"mkdir"}, Volumes: 3},
			{ID: "11111111-1111-4111-8111-111111111111", Name: "old"},
		}
	}
	p := &provisioner{Options{Nomad: agent.Client, Log: hclog.NewNullLogger(), Nodes: []Node{
		{Name: "a", Namespace: "default", Clients: here}, {Name: "b", Namespace: "default", Clients: here},
		{Name: "c", Namespace: "other", Clients: here}, {Name: "d", Namespace: "default", Clients: func() []Client { return nil }},
	}}}
	o := optionsFor("pvc-1", "a", map[string]string{"constraints": `[{attribute: "${attr.kernel.name}", value: linux}]`}, corev1.ReadWriteOnce)
	pv, state, err := p.Provision(t.Context(), o)
	if err != nil || state != controller.ProvisioningFinished {
		t.Fatalf("%s: %v", state, err)
	}
	if pv.Name != "pvc-1" || pv.Spec.CSI.Driver != translate.DriverHostVolume || pv.Spec.CSI.VolumeHandle != "pvc-1" ||
		pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || pv.Spec.Capacity.Storage().String() != "1Gi" {
		t.Errorf("%+v", pv.Spec)
	}
	if hosts := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values; strings.Join(hosts, " ") != "a b" {
		t.Errorf("affinity %v", hosts)
	}
	vol, _, err := agent.Client.HostVolumes().Get(pv.Spec.CSI.VolumeAttributes[attributeID], nil)
	if err != nil || vol.State != api.HostVolumeStateReady || vol.NodeID != nodes[0].ID {
		t.Fatalf("%+v, %v", vol, err)
	}
	if info, err := os.Stat(vol.HostPath); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("its directory: %v, %v", info, err)
	}
	// A try whose answer was lost finds what it has made.
	again, _, err := p.Provision(t.Context(), o)
	if err != nil || again.Spec.CSI.VolumeAttributes[attributeID] != vol.ID {
		t.Errorf("another volume: %+v, %v", again, err)
	}

	none := optionsFor("pvc-2", "a", map[string]string{"constraints": `[{attribute: "${attr.kernel.name}", value: plan9}]`}, corev1.ReadWriteOnce)
	if _, state, err := p.Provision(t.Context(), none); err == nil || state != controller.ProvisioningFinished || !strings.Contains(err.Error(), "none meets the StorageClass's constraints") {
		t.Errorf("constraints that no client meets: %s, %v", state, err)
	}
	if _, _, err := p.Provision(t.Context(), optionsFor("pvc-3", "d", nil, corev1.ReadWriteOnce)); err == nil || !strings.Contains(err.Error(), "no Nomad client of virtual node d") {
		t.Errorf("no client: %v", err)
	}

	var ignored *controller.IgnoredError
	byHand := pv.DeepCopy()
	byHand.Spec.CSI.VolumeAttributes = nil
	if err := p.Delete(t.Context(), byHand); !errors.As(err, &ignored) {
		t.Errorf("a volume made by hand: %v", err)
	}
	foreign := pv.DeepCopy()
	foreign.Spec.CSI.VolumeAttributes[attributeNamespace] = "elsewhere"
	if err := p.Delete(t.Context(), foreign); !errors.As(err, &ignored) {
		t.Errorf("a volume of another process: %v", err)
	}
	for range 2 { // the second finds nothing
		if err := p.Delete(t.Context(), pv); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := agent.Client.HostVolumes().Get(vol.ID, nil); err == nil {
		t.Error("Nomad still has it")
	}
	if _, err := os.Stat(vol.HostPath); !os.IsNotExist(err) {
		t.Errorf("its directory: %v", err)
	}
}

func TestWanted(t *testing.T) {
	two := &provisioner{Options{Nodes: []Node{{Name: "a"}, {Name: "b"}}}}
	one := &provisioner{Options{Nodes: two.Nodes[:1]}}
	const rwo, rox, rwx, pod = corev1.ReadWriteOnce, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOncePod
	for _, tc := range []struct {
		p    *provisioner
		o    controller.ProvisionOptions
		want string // node, plugin, mode and access modes, or an error
	}{
		{one, optionsFor("v", "", nil, rwo), "a mkdir 0777 single-node-reader-only single-node-writer"},
		{two, optionsFor("v", "b", map[string]string{"mode": "0700"}, rwo, rox), "b mkdir 0700 single-node-reader-only single-node-writer"},
		{two, optionsFor("v", "", map[string]string{"virtualNode": "b", "pluginID": "zfs"}, pod), "b zfs  single-node-reader-only single-node-single-writer"},
		{two, optionsFor("v", "", nil, rwo), "several virtual nodes"},
		{two, optionsFor("v", "metal", nil, rwo), "allowedTopologies"},
		{two, optionsFor("v", "", map[string]string{"virtualNode": "x"}, rwo), "StorageClass class names node x"},
		{one, optionsFor("v", "", nil, rwx), "ReadWriteMany"},
		{one, optionsFor("v", "", map[string]string{"constraints": "x: y"}, rwo), "is not a YAML list"},
		{one, optionsFor("v", "", map[string]string{"constraints": `[{attribute: class, value: x}]`}, rwo), "is none of Nomad's"},
	} {
		got := ""
		if w, err := tc.p.wanted(tc.o); err != nil {
			if got = err.Error(); strings.Contains(got, tc.want) {
				continue
			}
		} else {
			got = w.node.Name + " " + w.volume.PluginID + " " + w.volume.Parameters["mode"]
			for _, c := range w.volume.RequestedCapabilities {
				got += " " + string(c.AccessMode)
			}
		}
		if got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
	o := optionsFor("v", "", nil, rwo)
	o.PVC.Spec.Selector = &metav1.LabelSelector{}
	if _, err := one.wanted(o); err == nil || !strings.Contains(err.Error(), "selector") {
		t.Errorf("a selector: %v", err)
	}
	o = optionsFor("v", "", nil, rwo)
	o.StorageClass.MountOptions = []string{"noatime"}
	if _, err := one.wanted(o); err == nil || !strings.Contains(err.Error(), "mountOptions") {
		t.Errorf("mount options: %v", err)
	}
}

// Claims for the nodes of another process are its own; for a node that is no virtual
// one somebody has to say so.
func TestShouldProvision(t *testing.T) {
	virtual := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "theirs", Labels: map[string]string{labelProvidedBy: "nomad"}}}
	metal := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "metal"}}
	p := &provisioner{Options{Kube: fake.NewClientset(virtual, metal), Nodes: []Node{{Name: "ours"}}}}
	for node, want := range map[string]bool{"": true, "ours": true, "theirs": false, "metal": true, "nowhere": false} {
		c := claimOf(corev1.ReadWriteOnce)
		c.Annotations = map[string]string{annSelectedNode: node}
		if got := p.ShouldProvision(t.Context(), c); got != want {
			t.Errorf("%q: %v", node, got)
		}
	}
}
