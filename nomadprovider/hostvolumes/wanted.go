package hostvolumes

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
	"sigs.k8s.io/yaml"
)

// Parameters of a StorageClass. All others are the plugin's.
const (
	// parameterPlugin is the ID of the host volume plugin, mkdir if none is given.
	parameterPlugin = "pluginID"
	// parameterConstraints are Nomad's on the client, a YAML list of {attribute,
	// operator, value}.
	parameterConstraints = "constraints"
	// parameterNode is the virtual node of claims that wait for no consumer.
	parameterNode = "virtualNode"

	pluginMkdir = "mkdir"
	// mkdirMode of the directory lets every container write, whoever it runs as.
	// Nomad's own choice is root alone.
	mkdirMode, parameterMode = "0777", "mode"
)

// wanted is the volume that a claim asks for.
type wanted struct {
	node   *Node
	volume *api.HostVolume
}

// wanted reads claim and StorageClass. Its errors are for whoever wrote them.
func (p *provisioner) wanted(o controller.ProvisionOptions) (*wanted, error) {
	claim, class := o.PVC, o.StorageClass
	switch {
	case claim.Spec.Selector != nil:
		return nil, errors.New("the claim has a selector, which a volume that is made for it cannot meet")
	case len(class.MountOptions) > 0:
		return nil, fmt.Errorf("StorageClass %s has mountOptions: a host volume is mounted without", class.Name)
	}
	modes, err := capabilities(claim.Spec.AccessModes)
	if err != nil {
		return nil, err
	}
	w := &wanted{volume: &api.HostVolume{Name: o.PVName, PluginID: pluginMkdir, Parameters: map[string]string{}, RequestedCapabilities: modes}}
	request, limit := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Spec.Resources.Limits[corev1.ResourceStorage]
	w.volume.RequestedCapacityMinBytes = request.Value()
	w.volume.RequestedCapacityMaxBytes = max(limit.Value(), request.Value())
	chosen := ""
	for _, name := range slices.Sorted(maps.Keys(class.Parameters)) {
		switch value := class.Parameters[name]; name {
		case parameterPlugin:
			w.volume.PluginID = value
		case parameterConstraints:
			if w.volume.Constraints, err = constraints(value); err != nil {
				return nil, fmt.Errorf("StorageClass %s, parameter %s: %w", class.Name, name, err)
			}
		case parameterNode:
			chosen = value
		default:
			w.volume.Parameters[name] = value
		}
	}
	if w.volume.PluginID == pluginMkdir && w.volume.Parameters[parameterMode] == "" {
		w.volume.Parameters[parameterMode] = mkdirMode
	}
	w.node, err = p.place(o.SelectedNodeName, chosen, class.Name)
	return w, err
}

// place finds the virtual node of a claim: the scheduler's, or the class's.
func (p *provisioner) place(selected, chosen, class string) (*Node, error) {
	name, whose := selected, "the scheduler has selected"
	if name == "" {
		name, whose = chosen, "StorageClass "+class+" names"
	}
	switch node := p.node(name); {
	case node != nil:
		return node, nil
	case name != "":
		return nil, fmt.Errorf("%s node %s, which is no virtual node of Nomad: give StorageClass %s allowedTopologies with type: virtual-kubelet", whose, name, class)
	case len(p.Nodes) == 1:
		return &p.Nodes[0], nil
	}
	return nil, fmt.Errorf("there are several virtual nodes: give StorageClass %s volumeBindingMode WaitForFirstConsumer or parameter %s", class, parameterNode)
}

// capabilities are what pods may ask of the volume (translate/claims.go). It lies on
// one client, so many nodes cannot write to it.
func capabilities(modes []corev1.PersistentVolumeAccessMode) (out []*api.HostVolumeCapability, err error) {
	add := func(mode api.HostVolumeAccessMode) {
		out = append(out, &api.HostVolumeCapability{AttachmentMode: api.HostVolumeAttachmentModeFilesystem, AccessMode: mode})
	}
	add(api.HostVolumeAccessModeSingleNodeReader)
	for _, m := range modes {
		switch m {
		case corev1.ReadWriteOnce:
			add(api.HostVolumeAccessModeSingleNodeWriter)
		case corev1.ReadWriteOncePod:
			add(api.HostVolumeAccessModeSingleNodeSingleWriter)
		case corev1.ReadOnlyMany:
		default:
			return nil, fmt.Errorf("access mode %s: a host volume lies on one Nomad client; ReadWriteOnce lets any number of pods of the virtual node use it", m)
		}
	}
	return out, nil
}

func constraints(text string) (out []*api.Constraint, err error) {
	var list []struct{ Attribute, Operator, Value string }
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("is not a YAML list of {attribute, operator, value}: %w", err)
	}
	for i, c := range list {
		if c.Attribute == "" || !strings.Contains(c.Attribute, "${") {
			return nil, fmt.Errorf("entry %d: attribute %q is none of Nomad's, such as ${node.class}", i+1, c.Attribute)
		}
		if c.Operator == "" {
			c.Operator = "="
		}
		out = append(out, &api.Constraint{LTarget: c.Attribute, Operand: c.Operator, RTarget: c.Value})
	}
	return out, nil
}
