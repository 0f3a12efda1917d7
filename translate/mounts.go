package translate

import (
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// Mount points that Nomad or its docker driver has in every container; a
// second mount at the same place is an error of Docker's.
var takenMounts = []string{"/alloc", "/local", "/secrets", etcHosts, resolvConf}

// mounts adds the container's volumes to a docker-shaped configuration, and
// the templates of their files to the task.
func (b *builder) mounts(c *container) {
	var binds []string
	var mounts []map[string]any
	rendered, subPaths := map[string]bool{}, map[string]int{}
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		field := c.path + ".volumeMounts[" + m.MountPath + "]"
		v := b.volumes[m.Name]
		if v == nil {
			b.refuse(field, "volume %q is not in the pod", m.Name)
			continue
		}
		target, ok := b.mountTarget(c, m, field)
		if !ok || v.source == "" && !v.tmpfs && !v.requested {
			continue
		}
		if v.tmpfs {
			mounts = append(mounts, tmpfsMount(v, target))
			continue
		}
		if !rendered[v.Name] && !v.companion {
			rendered[v.Name] = true
			b.renderFiles(c, v)
		}
		source, sub, ok := b.mountSource(c, m, v, field)
		if !ok {
			continue
		}
		if v.requested && source == "" {
			b.mountClaim(c, m, v, target, field)
			continue
		}
		if sub != "" {
			subPaths[target] = strings.Count(sub, "/") + 1
		}
		readOnly := m.ReadOnly || v.readOnly
		if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
			b.refuse(field+".recursiveReadOnly", "is not there on Nomad")
		}
		propagation := b.propagation(c, m, field)
		if v.mustExist || strings.Contains(source, ":") {
			mounts = append(mounts, bindMount(source, target, readOnly, propagation))
			continue
		}
		// Unlike a mount, a volume creates what is not there.
		binds = append(binds, escapeHCL(bindSpec(source, target, readOnly, propagation)))
	}
	if len(subPaths) > 0 && b.in.Node.DockerProxy && b.dockerProxy(c) {
		b.label(c, LabelSubPaths, strings.TrimSpace(asJSON(subPaths)))
	}
	if len(binds) > 0 {
		c.config["volumes"] = binds
	}
	for _, m := range []map[string]any{b.hosts(c), b.terminationLog(c)} {
		if m != nil {
			mounts = append(mounts, m)
		}
	}
	if len(mounts) > 0 {
		c.config["mount"] = mounts
	}
	for i := range c.VolumeDevices {
		b.refuse(c.path+".volumeDevices["+c.VolumeDevices[i].DevicePath+"]", "block devices are not there on Nomad")
	}
}

func (b *builder) mountTarget(c *container, m *corev1.VolumeMount, field string) (string, bool) {
	target := path.Clean("/" + m.MountPath)
	switch {
	case m.MountPath == "" || target == "/" || strings.Contains(target, ":"):
		b.refuse(field, "mount path %q is not valid", m.MountPath)
	case target == resolvConf && b.dockerProxy(c):
		b.label(c, LabelOwnMounts, target)
		return target, true
	case slices.Contains(takenMounts, target) && !(target == etcHosts && (b.ownHosts() || !b.ownAddress())):
		b.refuse(field, "%s belongs to Nomad in every container: mount the volume elsewhere, or below it", target)
	default:
		return target, true
	}
	return "", false
}

// mountSource appends the sub-path.
func (b *builder) mountSource(c *container, m *corev1.VolumeMount, v *volume, field string) (source, sub string, ok bool) {
	sub = m.SubPath
	if m.SubPathExpr != "" {
		s, ok := expand(m.SubPathExpr, c.env.lookup).static()
		if !ok {
			b.refuse(field+".subPathExpr", "refers to a value that is known only when the container starts")
			return "", "", false
		}
		if strings.Contains(s, "$(") {
			// The kubelet waits until the pod's annotations say something else.
			b.miss("failed to expand subPath for volumeMount %q: missing value in %s", m.Name, s)
			return "", "", false
		}
		sub = s
	}
	if sub == "" {
		return v.source, "", true
	}
	if path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		b.miss("subPath %q of volumeMount %q must be relative and without '..'", sub, m.Name)
		return "", "", false
	}
	sub = path.Clean(sub)
	source = v.source
	if v.requested && b.row.Driver != driverQemu {
		if source, ok = b.clientPath(v, "sub-paths"); !ok {
			return "", "", false
		}
	}
	if v.companion {
		if (v.EmptyDir != nil || v.requested) && !slices.Contains(v.dirs, sub) {
			v.dirs = append(v.dirs, sub)
		}
		return source + "/" + sub, sub, true
	}
	if (v.EmptyDir != nil || v.requested) && b.nonRoot() && !strings.Contains(source, ":") {
		b.note(field+".subPath", "the directory is created for root alone if it is not there")
	}
	return source + "/" + sub, sub, true
}

// propagation returns Docker's word for a mount propagation, "" for none.
func (b *builder) propagation(c *container, m *corev1.VolumeMount, field string) string {
	if m.MountPropagation == nil {
		return ""
	}
	switch *m.MountPropagation {
	case corev1.MountPropagationHostToContainer:
		return "rslave"
	case corev1.MountPropagationBidirectional:
		if s := c.SecurityContext; s == nil || !isTrue(s.Privileged) {
			b.refuse(field+".mountPropagation", "Bidirectional is for privileged containers")
		}
		return "rshared"
	}
	return ""
}

func bindSpec(source, target string, readOnly bool, propagation string) string {
	var options []string
	if readOnly {
		options = append(options, "ro")
	}
	if propagation != "" {
		options = append(options, propagation)
	}
	spec := source + ":" + target
	if len(options) > 0 {
		spec += ":" + strings.Join(options, ",")
	}
	return spec
}

func bindMount(source, target string, readOnly bool, propagation string) map[string]any {
	m := map[string]any{"type": "bind", "source": escapeHCL(source), "target": escapeHCL(target), "readonly": readOnly}
	if propagation != "" {
		m["bind_options"] = []map[string]any{{"propagation": propagation}}
	}
	return m
}

func tmpfsMount(v *volume, target string) map[string]any {
	options := map[string]any{"mode": 0o777}
	if v.sizeBytes > 0 {
		options["size"] = v.sizeBytes
	}
	return map[string]any{"type": "tmpfs", "target": escapeHCL(target), "tmpfs_options": []map[string]any{options}}
}

// renderFiles adds a template for every file of a volume. Each task has
// directories of its own, so each renders its own copy.
func (b *builder) renderFiles(c *container, v *volume) {
	variable := VariablePath(*b.job.ID)
	for _, f := range v.files {
		data := f.data
		if f.item != "" {
			data = `{{ with nomadVar "` + variable + `" }}{{ ` + itemExpr(f.item) + ` }}{{ end }}`
		}
		t := &api.Template{
			EmbeddedTmpl: &data,
			DestPath:     new(v.source + "/" + f.path),
			ChangeMode:   new("noop"),
			Wait:         quickly(),
		}
		mode := f.mode
		if gid := b.fsGroup(); gid != nil {
			// What the kubelet does with read-only volumes of a pod with fsGroup.
			mode |= 0o440
			t.Gid = new(int(*gid))
		}
		t.Perms = new(perms(mode))
		c.task.Templates = append(c.task.Templates, t)
	}
}

// fsGroup is the group that volumes are given to, nil for none.
func (b *builder) fsGroup() *int64 {
	if s := b.pod.Spec.SecurityContext; s != nil && s.FSGroup != nil && *s.FSGroup >= 0 && *s.FSGroup <= maxID {
		return s.FSGroup
	}
	return nil
}

// TerminationLog is the file of a container's last words, in its task's
// directory.
const TerminationLog = "local/.k8s/term"

// terminationLog gives the container a file for its last words, which the
// pods room reads after the container ended. It is rendered empty for every
// run.
func (b *builder) terminationLog(c *container) map[string]any {
	at := c.TerminationMessagePath
	if at == "" {
		at = corev1.TerminationMessagePathDefault
	}
	target := path.Clean("/" + at)
	field := c.path + ".terminationMessagePath"
	if target == "/" || strings.Contains(target, ":") || slices.Contains(takenMounts, target) {
		b.note(field, "%s cannot be written by the container", at)
		return nil
	}
	for _, m := range c.VolumeMounts {
		if path.Clean("/"+m.MountPath) == target {
			b.note(field, "a volume is mounted there, so no message is read")
			return nil
		}
	}
	c.task.Templates = append(c.task.Templates, &api.Template{
		EmbeddedTmpl: new(`{{ "" }}`),
		DestPath:     new(TerminationLog),
		Perms:        new("0666"),
		Once:         new(true),
		ChangeMode:   new("noop"),
	})
	return bindMount(TerminationLog, target, false, "")
}
