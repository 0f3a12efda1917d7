package translate

import (
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	// DriverHostVolume is the CSI driver that PersistentVolumes of Nomad's host
	// volumes name, and the provisioner of their StorageClasses. The volumeHandle is
	// the name of the host volume, static or dynamic.
	DriverHostVolume = "host-volume." + Domain
	// DriverCSI is that of volumes that Nomad has by its own CSI plugins. The
	// volumeHandle is the ID of the volume in Nomad.
	DriverCSI = "csi." + Domain

	// claimDirectory is where a companion sees its pod's claims.
	claimDirectory = "/claims"
	// claimDisk is the file of a VM's disk in a volume.
	claimDisk = "disk.img"
	// offlineVolumes stands for the host volumes' directory where there is no Nomad
	// to ask.
	offlineVolumes = "/host-volumes"
)

// ClaimName is the PersistentVolumeClaim of a pod's volume, empty for other
// volumes. That of a generic ephemeral volume is named after the pod.
func ClaimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// HostVolumeName is the Nomad host volume that a PersistentVolume is.
func HostVolumeName(pv *corev1.PersistentVolumeSpec) (name string, ok bool) {
	if pv.CSI == nil || pv.CSI.Driver != DriverHostVolume {
		return "", false
	}
	return pv.CSI.VolumeHandle, true
}

// claim finds the claim of a volume, nil for one that the pod has to wait for, or
// that was refused.
func (b *builder) claim(v *volume) *Claim {
	name := ClaimName(b.pod, v.Volume)
	c, ok := b.in.Claims[name]
	switch {
	case !ok && b.in.Offline:
		b.note(v.field, "claim %q is not known here: the job shows one of a host volume of the same name", name)
		return &Claim{Volume: &corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: DriverHostVolume, VolumeHandle: name},
			},
		}}
	case !ok:
		b.await("persistentvolumeclaim %q not found", name)
	case c.Pending != "" || c.Volume == nil:
		// The kubelet's words (desired_state_of_world_populator.go).
		b.await("error processing PVC %s/%s: %s", b.pod.Namespace, name, c.Pending)
	case c.Volume.VolumeMode != nil && *c.Volume.VolumeMode == corev1.PersistentVolumeBlock:
		b.refuse(v.field, "claim %q is a block device: only volumeMode Filesystem is there on Nomad", name)
	default:
		return &c
	}
	return nil
}

// claimVolume is what a claim is bound to.
func (b *builder) claimVolume(v *volume) {
	c := b.claim(v)
	if c == nil {
		return
	}
	v.readOnly = readOnlyClaim(v, c)
	switch s := &c.Volume.PersistentVolumeSource; {
	case s.HostPath != nil:
		b.hostPath(v, v.field+".persistentVolume.hostPath", s.HostPath)
	case s.Local != nil:
		kind := corev1.HostPathDirectory
		b.hostPath(v, v.field+".persistentVolume.local", &corev1.HostPathVolumeSource{Path: s.Local.Path, Type: &kind})
	case s.CSI != nil && s.CSI.Driver == DriverHostVolume:
		b.hostVolume(v, c)
		if b.writesFiles && ownedClaim(b.pod, v.Volume, b.mountsOf(v.Name), b.fsGroup() != nil, b.nonRoot()) && !v.readOnly {
			v.companion, v.at = true, claimDirectory+"/"+v.Name
			if b.fsGroup() != nil {
				b.note(v.field, "the directory of the volume is given to the fsGroup, not what lies in it")
			}
		}
	case s.CSI != nil && s.CSI.Driver == DriverCSI:
		b.csiVolume(v, c)
	default:
		b.refuse(v.field, "%s", unsupportedPersistentVolume(s))
	}
}

// unsupportedPersistentVolume tells why a source is refused, and what would do.
func unsupportedPersistentVolume(s *corev1.PersistentVolumeSource) string {
	what := "a PersistentVolume of this type"
	switch {
	case s.CSI != nil:
		what = "a PersistentVolume of CSI driver " + s.CSI.Driver
	case s.NFS != nil:
		what = "an NFS PersistentVolume"
	}
	return what + " cannot be mounted by a Nomad client: use one of CSI driver " + DriverHostVolume + " (StorageClass nomad-host-volume)"
}

// readOnlyClaim says whether nothing is written through the claim.
func readOnlyClaim(v *volume, c *Claim) bool {
	if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly || c.Volume.CSI != nil && c.Volume.CSI.ReadOnly {
		return true
	}
	return len(c.AccessModes) > 0 && !slices.ContainsFunc(c.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool { return m != corev1.ReadOnlyMany })
}

// ownedClaim says whether the companion has something to do in a claim's volume:
// its directory is given to the fsGroup, and those of sub-paths are made for others
// than root.
func ownedClaim(pod *corev1.Pod, v *corev1.Volume, mounts []corev1.VolumeMount, fsGroup, nonRoot bool) bool {
	if ClaimName(pod, v) == "" || len(mounts) == 0 || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly {
		return false
	}
	return fsGroup || nonRoot && slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.SubPath != "" || m.SubPathExpr != "" })
}

// hostVolume asks for the host volume, by which Nomad places the pod on a client
// that has it. Access modes are those of dynamic ones; Nomad does not look at them
// for the others (scheduler/feasible/feasible.go).
func (b *builder) hostVolume(v *volume, c *Claim) {
	r := &api.VolumeRequest{Type: api.CSIVolumeTypeHost, Source: c.Volume.CSI.VolumeHandle, ReadOnly: v.readOnly,
		AttachmentMode: string(api.HostVolumeAttachmentModeFilesystem), AccessMode: string(api.HostVolumeAccessModeSingleNodeWriter)}
	switch {
	case v.readOnly:
		r.AccessMode = string(api.HostVolumeAccessModeSingleNodeReader)
	case slices.Contains(c.AccessModes, corev1.ReadWriteOncePod):
		r.AccessMode = string(api.HostVolumeAccessModeSingleNodeSingleWriter)
	}
	if r.Source == "" || strings.Contains(r.Source, "${") {
		b.refuse(v.field, "volumeHandle %q of the PersistentVolume is not the name of a Nomad host volume", r.Source)
		return
	}
	v.paths = c.Paths
	b.request(v, r)
}

// csiVolume asks for a volume of Nomad's own CSI plugins.
func (b *builder) csiVolume(v *volume, c *Claim) {
	v.csi = true
	s := c.Volume.CSI
	r := &api.VolumeRequest{Type: api.CSIVolumeTypeCSI, Source: s.VolumeHandle, ReadOnly: v.readOnly,
		AttachmentMode: string(api.CSIVolumeAttachmentModeFilesystem), AccessMode: string(api.CSIVolumeAccessModeSingleNodeWriter)}
	switch {
	case v.readOnly:
		r.AccessMode = string(api.CSIVolumeAccessModeMultiNodeReader)
	case slices.Contains(c.AccessModes, corev1.ReadWriteMany):
		r.AccessMode = string(api.CSIVolumeAccessModeMultiNodeMultiWriter)
	}
	if s.FSType != "" || len(c.Volume.MountOptions) > 0 {
		r.MountOptions = &api.CSIMountOptions{FSType: s.FSType, MountFlags: c.Volume.MountOptions}
	}
	b.request(v, r)
}

// request adds a volume block to the group, under the name of the pod's volume.
func (b *builder) request(v *volume, r *api.VolumeRequest) {
	v.requested = true
	if b.group == nil {
		return // of an ephemeral container, whose pod has it
	}
	r.Name = v.Name
	if b.group.Volumes == nil {
		b.group.Volumes = map[string]*api.VolumeRequest{}
	}
	b.group.Volumes[v.Name] = r
}

// clientPath is the directory of a host volume on the client, for what Nomad's own
// mounts do not do. A dynamic volume lies on one client; static ones of one name
// may lie at different places, and which client it will be is not known.
func (b *builder) clientPath(v *volume, what string) (string, bool) {
	paths := slices.Compact(slices.Sorted(slices.Values(v.paths)))
	name := ClaimName(b.pod, v.Volume)
	switch {
	case len(paths) == 0 && b.in.Offline:
		b.note(v.field, "where the host volume of claim %q lies on its client is not known here", name)
		return offlineVolumes + "/" + name, true
	case v.csi:
		b.refuse(v.field, "%s of a volume of Nomad's CSI: only host volumes have them (driver %s)", what, DriverHostVolume)
	case len(paths) == 0:
		b.await("no Nomad client of virtual node %s has the host volume of claim %q", b.in.Node.Name, name)
	case len(paths) > 1:
		b.refuse(v.field, "%s of a host volume that lies at different places on its clients (%s): give it one path in the clients' host_volume blocks",
			what, strings.Join(paths, ", "))
	case !path.IsAbs(paths[0]) || strings.Contains(paths[0], "\n"):
		b.refuse(v.field, "the host volume's path %q on its client cannot be used", paths[0])
	default:
		return path.Clean(paths[0]), true
	}
	return "", false
}

// mountClaim adds Nomad's own mount to a task.
func (b *builder) mountClaim(c *container, m *corev1.VolumeMount, v *volume, target, field string) {
	propagation := api.VolumeMountPropagationPrivate
	switch b.propagation(c, m, field) {
	case "rslave":
		propagation = api.VolumeMountPropagationHostToTask
	case "rshared":
		propagation = api.VolumeMountPropagationBidirectional
	}
	c.task.VolumeMounts = append(c.task.VolumeMounts, &api.VolumeMount{
		Volume: new(v.Name), Destination: new(escapeHCL(target)), ReadOnly: new(m.ReadOnly || v.readOnly), PropagationMode: new(propagation),
	})
}

// companionClaims are the mounts of the claims in whose volumes the companion has
// something to do.
func (b *builder) companionClaims() (out []*api.VolumeMount) {
	for i := range b.pod.Spec.Volumes {
		v := b.volumes[b.pod.Spec.Volumes[i].Name]
		if v.requested && (v.companion || b.row.Driver == driverQemu) {
			out = append(out, &api.VolumeMount{Volume: new(v.Name), Destination: new(claimDirectory + "/" + v.Name), ReadOnly: new(v.readOnly)})
		}
	}
	return out
}

// vmClaim is a disk that outlives the pod: a file in the host volume.
func (b *builder) vmClaim(v *volume) {
	c := b.claim(v)
	if c == nil {
		return
	}
	if _, ok := HostVolumeName(c.Volume); !ok {
		b.refuse(v.field, "a VM's claim is to be bound to a PersistentVolume of CSI driver %s (StorageClass nomad-host-volume)", DriverHostVolume)
		return
	}
	size := toMB(c.Volume.Capacity[corev1.ResourceStorage])
	if size == 0 {
		b.refuse(v.field, "the PersistentVolume has no capacity, which is the size of a VM's disk")
		return
	}
	v.readOnly = readOnlyClaim(v, c)
	b.hostVolume(v, c)
	dir, ok := b.clientPath(v, "VM disks")
	if !ok {
		return
	}
	b.guest.disks = append(b.guest.disks, Disk{Path: claimDirectory + "/" + v.Name + "/" + claimDisk, SizeMB: size, Raw: true, ReadOnly: v.readOnly})
	id, serial := "vol-"+v.Name, vmSerial(v.Name)
	// The driver for files takes nothing else for one, such as a device; in qemu's
	// lists a comma is written twice.
	drive := "driver=raw,file.driver=file,file.filename=" + strings.ReplaceAll(dir+"/"+claimDisk, ",", ",,") + ",if=none,id=" + id + ",discard=unmap"
	if v.readOnly {
		drive += ",readonly=on"
	}
	b.guest.args = append(b.guest.args, "-drive", drive, "-device", "virtio-blk-pci,drive="+id+",serial="+serial)
	b.guest.script = append(b.guest.script, call("disk", v.Name, serial))
}
