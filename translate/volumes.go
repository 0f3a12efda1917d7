package translate

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// volume is where a pod's volume lies on the client.
type volume struct {
	*corev1.Volume
	field string
	// source is the directory to mount, relative to the task's directory or
	// absolute; empty for volumes that were refused.
	source string
	// files are rendered into source, once for every task that mounts it.
	files []file
	// items takes the values of the files: the job's Variable, or what is handed
	// to the companion.
	items *items
	// companion volumes are written by the companion; at is where it sees them.
	companion bool
	at        string
	// dirs are the directories of sub-paths that the companion makes.
	dirs []string
	// readOnly volumes cannot be written, whatever the mount says.
	readOnly bool
	// requested is set for a volume block of the group, which Nomad mounts; paths are
	// where Nomad's clients have it, as far as they are known. csi is set for one of
	// Nomad's CSI plugins.
	requested, csi bool
	paths          []string
	// mustExist is set for host paths that are not to be created.
	mustExist bool
	// tmpfs is set for memory that one container mounts once; sizeMB 0 is no limit.
	tmpfs     bool
	sizeBytes int64
}

// file is one projected file: literal data, or an item.
type file struct {
	path string
	item string
	data string
	mode int32
}

// Directories that every allocation has, writable for all.
var openDirs = []string{"../alloc/data", "../alloc/tmp"}

// collectVolumes decides for each of the pod's volumes where it lies.
func (b *builder) collectVolumes() {
	b.volumes = map[string]*volume{}
	b.decideCompanion()
	open := slices.Clone(openDirs)
	for i := range b.pod.Spec.Volumes {
		v := &volume{Volume: &b.pod.Spec.Volumes[i], items: &b.items}
		v.field = "spec.volumes[" + v.Name + "]"
		b.volumes[v.Name] = v
		if b.row.Driver == driverQemu {
			b.vmVolume(v)
			continue
		}
		switch s := &v.VolumeSource; {
		case s.EmptyDir != nil:
			open = b.emptyDir(v, open)
		case s.HostPath != nil:
			b.hostPath(v, v.field+".hostPath", s.HostPath)
		case s.PersistentVolumeClaim != nil, s.Ephemeral != nil:
			b.claimVolume(v)
		case s.ConfigMap != nil, s.Secret != nil, s.DownwardAPI != nil, s.Projected != nil:
			b.projectedVolume(v)
		default:
			b.refuse(v.field, "%s", unsupportedVolume(s))
		}
	}
}

// unsupportedVolume tells why a source is refused.
func unsupportedVolume(s *corev1.VolumeSource) string {
	switch {
	case s.CSI != nil:
		return "CSI volumes are not there yet"
	case s.Image != nil:
		return "image volumes are not there yet"
	case s.NFS != nil:
		return "NFS volumes are not there yet"
	case s.GitRepo != nil:
		return "gitRepo volumes were removed from Kubernetes"
	}
	return "volumes of this type are not supported on Nomad"
}

// emptyDir gives the first volumes the directories that all users may write,
// and others one that Docker creates for root.
func (b *builder) emptyDir(v *volume, open []string) []string {
	e := v.EmptyDir
	mounts := b.mountsOf(v.Name)
	limited := e.SizeLimit != nil && !e.SizeLimit.IsZero()
	switch e.Medium {
	case corev1.StorageMediumMemory:
		if b.writesFiles && len(mounts) > 0 {
			b.memoryVolume(v, limited)
			return open
		}
		if len(mounts) == 1 && mounts[0].SubPath == "" && mounts[0].SubPathExpr == "" && b.dockerShaped() {
			v.tmpfs = true
			if limited {
				v.sizeBytes = max(e.SizeLimit.Value(), 0)
			}
			b.note(v.field+".emptyDir.medium", "the memory is the container's own and is emptied when the container restarts: set virtualNodes[].companionImage")
			return open
		}
		b.note(v.field+".emptyDir.medium", "lies on disk: memory that several mounts share needs virtualNodes[].companionImage")
	case corev1.StorageMediumDefault:
	default:
		b.refuse(v.field+".emptyDir.medium", "huge pages are not there on Nomad")
		return open
	}
	if limited {
		b.note(v.field+".emptyDir.sizeLimit", "is not enforced")
	}
	if len(mounts) == 0 {
		return open
	}
	if b.writesFiles {
		v.companion, v.at = true, "/alloc/k8s/"+v.Name
		v.source = ".." + v.at
		return open
	}
	if len(open) > 0 {
		v.source = open[0]
		return open[1:]
	}
	v.source = "../alloc/k8s/" + v.Name
	if b.nonRoot() {
		b.note(v.field+".emptyDir", "only root can write: two emptyDir volumes of a pod are writable for all users, this is one more (set virtualNodes[].companionImage)")
	}
	return open
}

// memoryDefaultMB is the size of a memory volume that names none.
const memoryDefaultMB = 32

// memoryVolume lies in the memory that the companion has for it.
func (b *builder) memoryVolume(v *volume, limited bool) {
	mb := int64(memoryDefaultMB)
	if limited {
		mb = max(toMB(*v.EmptyDir.SizeLimit), 1)
	} else {
		b.note(v.field+".emptyDir.sizeLimit", "is not given, so it holds %d MiB: Nomad reserves the memory of a volume", memoryDefaultMB)
	}
	b.memoryVolumesMB += mb
	v.companion, v.at = true, "/secrets/mem/"+v.Name
	v.source = "../" + CompanionTask + v.at
}

// mountsOf lists the mounts of a volume in all containers.
func (b *builder) mountsOf(name string) (out []corev1.VolumeMount) {
	for _, c := range b.containers() {
		for _, m := range c.VolumeMounts {
			if m.Name == name {
				out = append(out, m)
			}
		}
	}
	return out
}

// nonRoot reports whether some container runs as another user than root.
func (b *builder) nonRoot() bool {
	for _, c := range b.containers() {
		if u := b.userOf(c); u != nil && *u != 0 {
			return true
		}
	}
	return false
}

// hostPath allows what the virtual node's configuration lists.
func (b *builder) hostPath(v *volume, field string, h *corev1.HostPathVolumeSource) {
	clean := path.Clean(h.Path)
	if !path.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
		b.refuse(field, "path %q must be absolute and without '..'", h.Path)
		return
	}
	if !under(clean, b.in.Node.HostAccess.HostPaths) {
		b.refuse(field, "path %s of the Nomad client is not allowed: add it to virtualNodes[].hostAccess.hostPaths", clean)
		return
	}
	v.source = clean
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	switch kind {
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
	case corev1.HostPathDirectory, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev:
		v.mustExist = true
		b.note(field+".type", "the path must exist; that it is a %s is not checked", kind)
	case corev1.HostPathFileOrCreate:
		v.mustExist = true // Docker would make it a directory
		b.note(field+".type", "the file must exist: it is not created")
	default:
		b.refuse(field+".type", "%s is not known", kind)
	}
}

// under reports whether a clean path is one of the directories or lies in one.
func under(clean string, dirs []string) bool {
	for _, d := range dirs {
		if !path.IsAbs(d) {
			continue
		}
		d = path.Clean(d)
		if clean == d || d == "/" || strings.HasPrefix(clean, d+"/") {
			return true
		}
	}
	return false
}

// projectedVolume lists the files of a volume made from objects.
func (b *builder) projectedVolume(v *volume) {
	v.readOnly = true
	if v.companion = b.writesFiles && written(v.Volume); v.companion {
		v.items = &b.fileItems
	}
	dir := "local/vol/"
	if b.projectedFiles(v) {
		dir = "secrets/vol/"
	}
	v.source = dir + v.Name
	if v.companion {
		v.at, v.source = "/"+v.source, "../"+CompanionTask+"/"+v.source
	}
}

// projectedFiles lists them; secret is true when one of them must not be readable
// through Nomad's file system API.
func (b *builder) projectedFiles(v *volume) (secret bool) {
	switch s := &v.VolumeSource; {
	case s.ConfigMap != nil:
		p := &corev1.ConfigMapProjection{LocalObjectReference: s.ConfigMap.LocalObjectReference, Items: s.ConfigMap.Items, Optional: s.ConfigMap.Optional}
		b.objectFiles(v, kindConfigMap, p.Name, p.Items, isTrue(p.Optional), modeOr(s.ConfigMap.DefaultMode))
	case s.Secret != nil:
		secret = true
		b.objectFiles(v, kindSecret, s.Secret.SecretName, s.Secret.Items, isTrue(s.Secret.Optional), modeOr(s.Secret.DefaultMode))
	case s.DownwardAPI != nil:
		b.downwardFiles(v, s.DownwardAPI.Items, modeOr(s.DownwardAPI.DefaultMode))
	case s.Projected != nil:
		secret = b.sources(v, s.Projected)
	}
	// Later sources win over earlier ones at the same path.
	byPath := map[string]file{}
	for _, f := range v.files {
		byPath[f.path] = f
	}
	v.files = v.files[:0]
	for _, p := range sortedKeys(byPath) {
		v.files = append(v.files, byPath[p])
	}
	return secret
}

// sources adds the files of a projected volume; secret is true when one of
// them must not be readable through Nomad's file system API.
func (b *builder) sources(v *volume, p *corev1.ProjectedVolumeSource) (secret bool) {
	mode := modeOr(p.DefaultMode)
	for i := range p.Sources {
		switch s := &p.Sources[i]; {
		case s.ConfigMap != nil:
			b.objectFiles(v, kindConfigMap, s.ConfigMap.Name, s.ConfigMap.Items, isTrue(s.ConfigMap.Optional), mode)
		case s.Secret != nil:
			secret = true
			b.objectFiles(v, kindSecret, s.Secret.Name, s.Secret.Items, isTrue(s.Secret.Optional), mode)
		case s.DownwardAPI != nil:
			b.downwardFiles(v, s.DownwardAPI.Items, mode)
		case s.ServiceAccountToken != nil:
			secret = true
			t := s.ServiceAccountToken
			seconds := int64(3600)
			if t.ExpirationSeconds != nil {
				seconds = *t.ExpirationSeconds
			}
			b.addFile(v, t.Path, file{item: v.items.add(Item{Token: &TokenRef{Audience: t.Audience, ExpirationSeconds: seconds}}), mode: mode})
		case s.ClusterTrustBundle != nil:
			b.refuse(v.field+".projected.sources.clusterTrustBundle", "cluster trust bundles are not there yet")
		case s.PodCertificate != nil:
			b.refuse(v.field+".projected.sources.podCertificate", "pod certificates are not there yet")
		}
	}
	return secret
}

// objectFiles adds the keys of a ConfigMap or Secret: all, or those listed.
func (b *builder) objectFiles(v *volume, kind objectKind, name string, list []corev1.KeyToPath, optional bool, mode int32) {
	keys, known := b.objectKeys(kind, name, optional)
	if len(list) == 0 {
		if !known && b.in.Offline {
			b.note(v.field, "the keys of %s %q are not known here, so its files are left out", kind, name)
		}
		for _, k := range keys {
			b.addFile(v, k, file{item: v.items.add(kind.item(name, k, true)), mode: mode})
		}
		return
	}
	for _, i := range list {
		switch {
		case known && slices.Contains(keys, i.Key), !known && b.in.Offline:
		case known && !optional:
			if kind == kindSecret {
				b.miss("references non-existent secret key: %s", i.Key)
			} else {
				b.miss("configmap references non-existent config key: %s", i.Key)
			}
			continue
		default:
			continue
		}
		m := mode
		if i.Mode != nil {
			m = *i.Mode
		}
		b.addFile(v, i.Path, file{item: v.items.add(kind.item(name, i.Key, optional)), mode: m})
	}
}

func (b *builder) downwardFiles(v *volume, list []corev1.DownwardAPIVolumeFile, mode int32) {
	for i := range list {
		d := &list[i]
		f := file{mode: mode}
		if d.Mode != nil {
			f.mode = *d.Mode
		}
		field := v.field + ".downwardAPI.items[" + d.Path + "]"
		switch {
		case d.FieldRef != nil && volumeField(d.FieldRef.FieldPath):
			f.item = v.items.add(Item{Field: d.FieldRef.FieldPath})
		case d.FieldRef != nil:
			b.refuse(field, "field label not supported: %s", d.FieldRef.FieldPath)
			continue
		case d.ResourceFieldRef != nil:
			c := b.named(d.ResourceFieldRef.ContainerName)
			if c == nil {
				b.refuse(field, "container %s not found", d.ResourceFieldRef.ContainerName)
				continue
			}
			s, err := b.resourceValue(c, d.ResourceFieldRef, field)
			if err != nil {
				b.refuse(field, "%v", err)
				continue
			}
			f.data = s
		}
		b.addFile(v, d.Path, f)
	}
}

// addFile keeps a file within its volume, as the API server's validation does.
func (b *builder) addFile(v *volume, at string, f file) {
	clean := path.Clean(at)
	switch {
	case at == "" || path.IsAbs(at) || clean == "." || slices.Contains(strings.Split(at, "/"), ".."):
		b.refuse(v.field, "file %q lies outside the volume", at)
		return
	case strings.Contains(at, "${"):
		b.refuse(v.field, "file %q: Nomad would replace the ${} in its name", at)
		return
	}
	f.path = clean
	v.files = append(v.files, f)
}

func modeOr(p *int32) int32 {
	if p == nil {
		return corev1.ConfigMapVolumeSourceDefaultMode
	}
	return *p
}

func perms(mode int32) string { return fmt.Sprintf("%04o", uint32(mode)&0o777) }
