package hostvolumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Node is a virtual node, as far as volumes go.
type Node struct {
	Name string
	// Namespace is Nomad's, to which a volume belongs.
	Namespace string
	// Clients are those of the node that take new allocations.
	Clients func() []Client
}

// Client is a Nomad client.
type Client struct {
	ID, Name string
	// Plugins are the host volume plugins that it has, and Volumes how many host
	// volumes.
	Plugins []string
	Volumes int
}

// Options are the parts a provisioner is made of; all are needed.
type Options struct {
	Kube  kubernetes.Interface
	Nomad *api.Client
	Nodes []Node
	Log   hclog.Logger
}

const (
	// retryFirst and retryLast bound the pause before another try.
	retryFirst = time.Second
	retryLast  = time.Minute
	// patience is how long a new volume is waited for until its client has told the
	// servers of it, which takes some seconds.
	patience = time.Minute

	// attributes of a PersistentVolume: the volume's ID and namespace in Nomad.
	attributeID        = translate.Domain + "/volume-id"
	attributeNamespace = translate.Domain + "/namespace"
	// labelProvidedBy is on every virtual node, of this process or another.
	labelProvidedBy = translate.Domain + "/provided-by"

	annSelectedNode = "volume.kubernetes.io/selected-node"
)

// Run provisions until ctx ends. The caller sees to it that one process does.
func Run(ctx context.Context, o Options) {
	limiter := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryLast)
	}
	controller.NewProvisionController(ctx, o.Kube, translate.DriverHostVolume, &provisioner{o},
		controller.LeaderElection(false), controller.RateLimiter(limiter()), controller.CreateProvisionedPVLimiter(limiter()),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0),
		// A PersistentVolume that somebody deletes waits until Nomad's volume is gone.
		controller.AddFinalizer(true),
	).Run(ctx)
}

type provisioner struct{ Options }

var (
	_ controller.Provisioner = (*provisioner)(nil)
	_ controller.Qualifier   = (*provisioner)(nil)
)

// ShouldProvision leaves claims alone whose pods are for the virtual node of another
// process. Those for no virtual node at all are told so.
func (p *provisioner) ShouldProvision(ctx context.Context, claim *corev1.PersistentVolumeClaim) bool {
	name := claim.Annotations[annSelectedNode]
	if name == "" || p.node(name) != nil {
		return true
	}
	node, err := p.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	return err == nil && node.Labels[labelProvidedBy] == ""
}

func (p *provisioner) node(name string) *Node {
	for i := range p.Nodes {
		if p.Nodes[i].Name == name {
			return &p.Nodes[i]
		}
	}
	return nil
}

// Provision makes the volume, or goes on with one that was made before. The volume's
// name is the PersistentVolume's, which is the claim's alone.
func (p *provisioner) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w, err := p.wanted(o)
	if err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	vol, err := p.find(ctx, w.node.Namespace, o.PVName)
	if err != nil {
		return nil, controller.ProvisioningNoChange, err
	}
	if vol == nil {
		if vol, err = p.create(ctx, w); err != nil {
			var none *noClientError
			if errors.As(err, &none) {
				return nil, controller.ProvisioningFinished, err
			}
			return nil, controller.ProvisioningInBackground, err
		}
	}
	if vol, err = p.ready(ctx, vol); err != nil {
		return nil, controller.ProvisioningInBackground, err
	}
	return p.persistentVolume(o, vol), controller.ProvisioningFinished, nil
}

// find looks for the volume of that name, nil for none.
func (p *provisioner) find(ctx context.Context, namespace, name string) (*api.HostVolume, error) {
	q := (&api.QueryOptions{Namespace: namespace, Filter: fmt.Sprintf("Name == %q", name)}).WithContext(ctx)
	list, _, err := p.Nomad.HostVolumes().List(nil, q)
	if err != nil {
		return nil, fmt.Errorf("list Nomad's host volumes: %w", err)
	}
	for _, v := range list {
		if v.Name == name {
			return &api.HostVolume{ID: v.ID, Namespace: v.Namespace, Name: v.Name, NodeID: v.NodeID}, nil
		}
	}
	return nil, nil
}

// noClientError says that nothing was made.
type noClientError struct{ node, plugin, last string }

func (e *noClientError) Error() string {
	msg := fmt.Sprintf("no Nomad client of virtual node %s is ready and has host volume plugin %q", e.node, e.plugin)
	if e.last != "" {
		msg = fmt.Sprintf("no Nomad client of virtual node %s takes the volume: %s", e.node, e.last)
	}
	return msg
}

// create makes the volume on the client that has the fewest. Nomad itself takes the
// first of the clients that meet the constraints, ready or not
// (nomad/host_volume_endpoint.go), so it is offered one at a time.
func (p *provisioner) create(ctx context.Context, w *wanted) (*api.HostVolume, error) {
	clients := slices.DeleteFunc(w.node.Clients(), func(c Client) bool { return !slices.Contains(c.Plugins, w.volume.PluginID) })
	slices.SortFunc(clients, func(a, b Client) int {
		return cmp.Or(cmp.Compare(a.Volumes, b.Volumes), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	none := &noClientError{node: w.node.Name, plugin: w.volume.PluginID}
	for _, c := range clients {
		vol := *w.volume
		vol.Constraints = append(slices.Clone(vol.Constraints), &api.Constraint{LTarget: "${node.unique.id}", Operand: "=", RTarget: c.ID})
		resp, _, err := p.Nomad.HostVolumes().Create(&api.HostVolumeCreateRequest{Volume: &vol},
			(&api.WriteOptions{Namespace: w.node.Namespace}).WithContext(ctx))
		switch {
		case err == nil:
			p.Log.Info("made a host volume", "volume", vol.Name, "client", c.Name)
			return resp.Volume, nil
		case !strings.Contains(err.Error(), "no node meets constraints"):
			return nil, fmt.Errorf("make a host volume on Nomad client %s: %w", c.Name, err)
		}
		none.last = "none meets the StorageClass's constraints"
	}
	return nil, none
}

// ready waits until Nomad's scheduler knows of the volume.
func (p *provisioner) ready(ctx context.Context, vol *api.HostVolume) (*api.HostVolume, error) {
	q := (&api.QueryOptions{Namespace: vol.Namespace}).WithContext(ctx)
	for {
		now, meta, err := p.Nomad.HostVolumes().Get(vol.ID, q)
		switch {
		case err != nil:
			return nil, fmt.Errorf("wait for host volume %s: %w", vol.ID, err)
		case now.State == api.HostVolumeStateReady:
			return now, nil
		}
		q.WaitIndex = meta.LastIndex
	}
}

func (p *provisioner) persistentVolume(o controller.ProvisionOptions, vol *api.HostVolume) *corev1.PersistentVolume {
	mode := corev1.PersistentVolumeFilesystem
	capacity := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	if vol.CapacityBytes > 0 {
		capacity.Set(vol.CapacityBytes)
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: o.PVC.Spec.AccessModes, VolumeMode: &mode,
			Capacity: corev1.ResourceList{corev1.ResourceStorage: capacity},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: translate.DriverHostVolume, VolumeHandle: vol.Name,
				VolumeAttributes: map[string]string{attributeID: vol.ID, attributeNamespace: vol.Namespace},
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: p.nodesOf(vol),
				}},
			}}}},
		},
	}
	if r := o.StorageClass.ReclaimPolicy; r != nil {
		pv.Spec.PersistentVolumeReclaimPolicy = *r
	}
	return pv
}

// nodesOf are the virtual nodes whose pods can use the volume: those that have its
// client, in its namespace.
func (p *provisioner) nodesOf(vol *api.HostVolume) (names []string) {
	for _, n := range p.Nodes {
		if n.Namespace == vol.Namespace && slices.ContainsFunc(n.Clients(), func(c Client) bool { return c.ID == vol.NodeID }) {
			names = append(names, n.Name)
		}
	}
	return names
}

// Delete deletes a volume that [provisioner.Provision] has made. Those that somebody
// made by hand are somebody's to delete.
func (p *provisioner) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	attributes := pv.Spec.CSI.VolumeAttributes
	id, namespace := attributes[attributeID], attributes[attributeNamespace]
	switch {
	case id == "" || namespace == "":
		return &controller.IgnoredError{Reason: "its host volume was not made for it"}
	case !slices.ContainsFunc(p.Nodes, func(n Node) bool { return n.Namespace == namespace }):
		return &controller.IgnoredError{Reason: "its host volume is in a Nomad namespace of another nomad-kubelet"}
	}
	vol, err := p.find(ctx, namespace, pv.Spec.CSI.VolumeHandle)
	if err != nil || vol == nil || vol.ID != id {
		return err
	}
	if _, _, err := p.Nomad.HostVolumes().Delete(&api.HostVolumeDeleteRequest{ID: id}, (&api.WriteOptions{Namespace: namespace}).WithContext(ctx)); err != nil {
		return fmt.Errorf("delete host volume %s (by hand: nomad volume delete -type host -namespace %s %s): %w", vol.Name, namespace, id, err)
	}
	p.Log.Info("deleted a host volume", "volume", vol.Name)
	return nil
}
