package translate

import (
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// dockerTask writes the configuration of Nomad's docker driver
// (drivers/docker/config.go), whose keys the podman driver shares.
func (b *builder) dockerTask(c *container) {
	c.config["image"] = escapeHCL(c.Image)
	if c.Image == "" {
		b.refuse(c.path+".image", "is missing")
	}
	b.pull(c)
	b.command(c)
	if c.WorkingDir != "" {
		c.config["work_dir"] = escapeHCL(c.WorkingDir)
	}
	if c.TTY {
		c.config["tty"] = true
	}
	if c.Stdin {
		c.config["interactive"] = true
		switch {
		case !c.StdinOnce:
		case b.in.Node.DockerProxy && b.dockerProxy(c):
			b.label(c, LabelStdinOnce, "true")
		default:
			b.note(c.path+".stdinOnce", "standard input stays open when the first client leaves: that takes the docker proxy")
		}
	}
	if hosts := hostAliases(b.pod); len(hosts) > 0 && !b.ownHosts() {
		c.config["extra_hosts"] = hosts
	}
	b.security(c)
	b.mounts(c)
}

// command sets entry point and arguments. Both are always given as Docker
// takes Kubernetes' words for them; without command the image's stays.
func (b *builder) command(c *container) {
	for _, f := range []struct {
		key  string
		list []string
	}{{"entrypoint", c.Command}, {"args", c.Args}} {
		if len(f.list) == 0 {
			continue
		}
		out := make([]string, len(f.list))
		for i, s := range f.list {
			v := expand(s, c.env.reference)
			b.useRuntime(v)
			out[i] = v.config()
		}
		c.config[f.key] = out
	}
}

// pull carries the pull policy and credentials.
func (b *builder) pull(c *container) {
	switch c.ImagePullPolicy {
	case corev1.PullAlways:
		c.config["force_pull"] = true
	case corev1.PullNever:
		b.note(c.path+".imagePullPolicy", "an image that the client does not have is pulled")
	}
	var have []string
	for _, s := range b.pod.Spec.ImagePullSecrets {
		_, ok := b.in.Secrets[s.Name]
		switch {
		case s.Name == "":
		case ok || b.in.Offline:
			have = append(have, s.Name)
		default:
			// The kubelet goes on without it, too.
			b.note("spec.imagePullSecrets", "secret %q not found; attempting to pull without it", s.Name)
		}
	}
	if len(have) > 0 && c.Image != "" {
		b.credentials(c, have)
	}
}

// secretBlock is the name of the task's secret block.
const secretBlock = "projected"

// credentials lets the client fill in user name and password from the job's
// Variable. They stand neither in the job nor in the container's environment.
//
// The client forgets the values when its agent restarts (Nomad issue 28237)
// and would then fail the task's next start for an unknown reference. Empty
// variables of the same names stand in for them, so the task starts with the
// image that the client has by then.
func (b *builder) credentials(c *container, secrets []string) {
	auth := map[string]any{}
	if c.task.Env == nil {
		c.task.Env = map[string]string{}
	}
	for _, part := range []string{"username", "password"} {
		key := b.items.add(Item{Registry: &RegistryRef{Secrets: slices.Clone(secrets), Image: c.Image, Part: part}, Optional: true, Quoted: true})
		name := strings.Join([]string{"secret", secretBlock, key}, ".")
		auth[part] = "${" + name + "}"
		c.task.Env[name] = ""
	}
	c.config["auth"] = []map[string]any{auth}
	b.secretBlock(c)
}

// secretBlock lets the client put quoted items in the place of references.
func (b *builder) secretBlock(c *container) {
	c.task.Secrets = []*api.Secret{{Name: secretBlock, Provider: "nomad", Path: VariablePath(*b.job.ID)}}
}

// genericTask is for drivers that are known by their row alone. The mock
// driver runs nothing, so all that concerns a process is passed over; the
// others are given a command and refused what would silently be missing.
func (b *builder) genericTask(c *container) {
	if b.row.Driver == driverMock {
		b.noteCommon(c.path, "driver %s runs no process: image, command, volumes and security context have no effect", driverMock)
		return
	}
	b.user(c)
	b.noteCommon(c.path+".image", "has no meaning for driver %s", b.row.Driver)
	words := slices.Concat(c.Command, c.Args)
	if len(words) > 0 {
		out := make([]string, len(words))
		for i, s := range words {
			v := expand(s, c.env.reference)
			b.useRuntime(v)
			out[i] = v.config()
		}
		c.config["command"] = out[0]
		if len(out) > 1 {
			c.config["args"] = out[1:]
		}
	}
	for _, m := range c.VolumeMounts {
		if b.isServiceAccountVolume(m.Name) {
			b.note(c.path+".volumeMounts["+m.MountPath+"]", "is left out: driver %s has no volumes yet", b.row.Driver)
			continue
		}
		b.refuse(c.path+".volumeMounts["+m.MountPath+"]", "volumes are not there yet for driver %s", b.row.Driver)
	}
	if s := c.SecurityContext; s != nil && (isTrue(s.Privileged) || s.Capabilities != nil && len(s.Capabilities.Add) > 0) {
		b.refuse(c.path+".securityContext", "privileges are not there for driver %s", b.row.Driver)
	}
}

// isServiceAccountVolume recognises the volume that admission adds to every pod.
func (b *builder) isServiceAccountVolume(name string) bool {
	return strings.HasPrefix(name, "kube-api-access-") || strings.HasPrefix(name, "default-token-")
}
