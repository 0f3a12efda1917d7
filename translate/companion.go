package translate

import (
	"slices"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// CompanionTask writes the pod's volumes, and probes and calls its network. A VM's
// makes its disks, reaches its console and guest agent, and presses its power
// button. Its name can be no container's.
const CompanionTask = "pod.companion"

// companionMemoryMB is what Nomad takes at least, and some.
const companionMemoryMB = 32

// vmHandingMB is what the companion of a VM may take beyond that for a moment: a
// guest agent is given an input, or the pod's files, whole and in JSON.
const vmHandingMB = 256

// decideCompanion settles whether the pod has one, and whether it writes files.
func (b *builder) decideCompanion() {
	if (b.dockerShaped() || b.row.Driver == driverQemu) && b.in.Node.CompanionImage != "" {
		b.writesFiles = HasFiles(b.pod, b.row.Driver)
		b.companion = b.writesFiles || b.networkProbes() || b.networkHooks()
	}
}

// HasFiles says whether something has to be written into the pod's volumes that
// a template cannot: keys that come and go, several files at once, more than a
// Variable holds, directories in memory or with another owner or mode, and any
// VM's disks. The containers of such a pod wait for its companion, if it has one.
func HasFiles(pod *corev1.Pod, driver string) bool {
	if driver == driverQemu {
		return true
	}
	b := &builder{pod: pod}
	empty := 0
	for i := range b.pod.Spec.Volumes {
		v := &b.pod.Spec.Volumes[i]
		mounts := b.mountsOf(v.Name)
		if len(mounts) == 0 {
			continue
		}
		if written(v) || ownedClaim(pod, v, mounts, b.fsGroup() != nil, b.nonRoot()) {
			return true
		}
		if v.EmptyDir == nil {
			continue
		}
		if v.EmptyDir.Medium == corev1.StorageMediumMemory {
			return true
		}
		empty++
		sub := slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.SubPath != "" || m.SubPathExpr != "" })
		if b.fsGroup() != nil || b.nonRoot() && (sub || empty > len(openDirs)) {
			return true
		}
	}
	return false
}

// written says whether the companion writes the volume: those of ConfigMaps and
// Secrets, but not the one of the API's credentials that admission gives to
// every pod, which names its keys and is small.
func written(v *corev1.Volume) bool {
	if v.ConfigMap != nil || v.Secret != nil {
		return true
	}
	if v.Projected == nil {
		return false
	}
	for _, s := range v.Projected.Sources {
		if s.Secret != nil || s.ConfigMap != nil && (s.ConfigMap.Name != "kube-root-ca.crt" || len(s.ConfigMap.Items) == 0) {
			return true
		}
	}
	return false
}

// files is what the companion is to write; it hangs on the pod and the objects'
// keys alone.
func (b *builder) files() *Files {
	if !b.writesFiles {
		return nil
	}
	f := &Files{Disks: b.machine.disks, Items: b.fileItems.list}
	if b.machine.tap {
		f.Guest = b.vmMAC().String()
	}
	gid := b.fsGroup()
	for i := range b.pod.Spec.Volumes {
		v := b.volumes[b.pod.Spec.Volumes[i].Name]
		switch {
		case !v.companion:
		case v.EmptyDir != nil, v.requested:
			dir := Dir{Path: v.at, GID: gid, Mode: 0o777, Kept: v.requested}
			if gid != nil {
				dir.Mode |= 0o2000 // setgid, as the kubelet's SetVolumeOwnership
			}
			f.Dirs = append(f.Dirs, dir)
			for _, sub := range v.dirs {
				dir.Path = v.at + "/" + sub
				f.Dirs = append(f.Dirs, dir)
			}
		default:
			vol := FileVolume{Path: v.at, GID: gid, Files: make([]VolumeFile, 0, len(v.files))}
			for _, file := range v.files {
				if gid != nil {
					file.mode |= 0o440
				}
				vol.Files = append(vol.Files, VolumeFile{Path: file.path, Item: file.item, Data: file.data, Mode: file.mode & 0o777})
			}
			f.Volumes = append(f.Volumes, vol)
		}
	}
	return f
}

// forever restarts a task of ours: it never fails, or it would take the pod
// with it.
func forever() *api.RestartPolicy {
	return &api.RestartPolicy{
		Attempts: new(100000), Delay: new(5 * time.Second), Interval: new(2000000 * time.Second), Mode: new(api.RestartPolicyModeDelay),
	}
}

// companionTask adds the companion's task. It does nothing by itself: the pods
// room runs its commands. If it writes files, the containers wait for it behind
// their gates.
func (b *builder) companionTask() {
	config := map[string]any{
		"image":           b.in.Node.CompanionImage,
		"args":            []string{"serve"},
		"cap_drop":        []string{"all"},
		"readonly_rootfs": true,
	}
	user := "65534:65534"
	if b.writesFiles {
		user = "0:0"
		config["cap_add"] = []string{"chown", "dac_override", "fowner", "fsetid"}
	}
	b.shareNetwork(config)
	t := helper(CompanionTask, config)
	t.User = user
	t.Lifecycle = &api.TaskLifecycle{Hook: api.TaskLifecycleHookPrestart, Sidecar: true}
	t.Resources = b.companionResources()
	t.VolumeMounts = b.companionClaims()
	if b.row.Driver == driverQemu {
		b.vmCompanion(t)
	}
	b.group.Tasks = append(append(b.group.Tasks, t), b.machine.fetch...)
}

// helper is a task beside the containers, or before them, that runs our program.
func helper(name string, config map[string]any) *api.Task {
	return &api.Task{
		Name:          name,
		Driver:        driverDocker,
		KillTimeout:   new(time.Second),
		LogConfig:     &api.LogConfig{MaxFiles: new(1), MaxFileSizeMB: new(1), Disabled: new(true)},
		RestartPolicy: forever(),
		Config:        config,
	}
}

// companionResources has the memory of the pod's memory volumes, too: they lie in
// the companion's secrets directory, of whose size Nomad's clients make a tmpfs
// (client/allocdir/fs_linux.go), and which outlives every container.
func (b *builder) companionResources() *api.Resources {
	memory, most := companionMemoryMB, 0
	r := &api.Resources{CPU: new(1)}
	if b.memoryVolumesMB > 0 {
		// Nomad adds it to both bounds of the memory, a missing one included
		// (scheduler/feasible/rank.go), and wants the memory to be no less.
		size := clampInt(b.memoryVolumesMB)
		memory = max(companionMemoryMB, size)
		r.SecretsMB, most = new(size), memory
	}
	if b.row.Driver == driverQemu && b.in.Node.MemoryOversubscription {
		most = memory + vmHandingMB
	}
	r.MemoryMB = new(memory)
	if most > 0 {
		r.MemoryMaxMB = new(most)
	}
	return r
}

// shareNetwork gives a companion the network of the pod's containers. Nomad
// does so by itself where the pod has an address of its own.
func (b *builder) shareNetwork(config map[string]any) {
	if !b.ownAddress() && !b.noNetwork() {
		config["network_mode"] = "host"
	}
}
