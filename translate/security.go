package translate

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// maxID is the largest user or group ID.
const maxID = math.MaxInt32

// Docker's default capabilities, which containers may add without being
// allowed to.
var defaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
	"NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// userOf is the user that a container is told to run as, the container's own
// setting before the pod's.
func (b *builder) userOf(c *container) *int64 {
	if s := c.SecurityContext; s != nil && s.RunAsUser != nil {
		return s.RunAsUser
	}
	if s := b.pod.Spec.SecurityContext; s != nil {
		return s.RunAsUser
	}
	return nil
}

func (b *builder) groupOf(c *container) *int64 {
	if s := c.SecurityContext; s != nil && s.RunAsGroup != nil {
		return s.RunAsGroup
	}
	if s := b.pod.Spec.SecurityContext; s != nil {
		return s.RunAsGroup
	}
	return nil
}

// user sets the task's user and checks runAsNonRoot as the kubelet does
// (pkg/kubelet/kuberuntime/security_context.go).
func (b *builder) user(c *container) {
	user, group := b.userOf(c), b.groupOf(c)
	field := c.path + ".securityContext"
	switch {
	case user != nil && group != nil:
		c.task.User = fmt.Sprintf("%d:%d", *user, *group)
	case user != nil:
		c.task.User = strconv.FormatInt(*user, 10)
	case group != nil && b.dockerProxy(c):
		b.label(c, LabelGroup, strconv.FormatInt(*group, 10))
	case group != nil:
		b.refuse(field+".runAsGroup", "needs the user too, since the image's user is not known here: set runAsUser, or give the clients the docker proxy")
	}
	nonRoot := b.pod.Spec.SecurityContext != nil && isTrue(b.pod.Spec.SecurityContext.RunAsNonRoot)
	if s := c.SecurityContext; s != nil && s.RunAsNonRoot != nil {
		nonRoot = *s.RunAsNonRoot
	}
	switch {
	case !nonRoot:
	case user == nil && b.dockerProxy(c):
		b.label(c, LabelNonRoot, b.called(c))
	case user == nil:
		b.refuse(field+".runAsNonRoot", "container has runAsNonRoot and the image's user cannot be verified here: set runAsUser, or give the clients the docker proxy")
	case *user == 0:
		// The kubelet waits for a change of mind (kuberuntime/security_context_others.go).
		b.miss("container's runAsUser breaks non-root policy (%s)", b.called(c))
	}
}

// called names a container as the kubelet's messages do.
func (b *builder) called(c *container) string {
	return fmt.Sprintf("pod: %q, container: %s", b.pod.Name+"_"+b.pod.Namespace+"("+string(b.pod.UID)+")", c.Name)
}

// The labels of a container that the docker proxy reads, and how clients tell
// that they have it; see nomadprovider/dockerproxy.
const (
	LabelNonRoot           = "nomad-kubelet.io/run-as-non-root"
	LabelGroup             = "nomad-kubelet.io/run-as-group"
	LabelOwnMounts         = "nomad-kubelet.io/own-mounts"
	LabelStdinOnce         = "nomad-kubelet.io/stdin-once"
	LabelSubPaths          = "nomad-kubelet.io/sub-paths"
	DockerVersionAttribute = "driver.docker.version"
	DockerProxyMark        = "+nomad-kubelet"
	// ImageFile is where it leaves the ID of a container's image, in the task's directory.
	ImageFile = ".k8s-image"
)

// dockerProxy says whether there are clients with the docker proxy, which makes
// the container as its labels say, and sees to it that the pod gets to one.
func (b *builder) dockerProxy(c *container) bool {
	if c.task.Driver != driverDocker || !b.in.Node.DockerProxy && !b.in.Offline {
		return false
	}
	if !b.in.Node.DockerProxy {
		b.note(c.path, "runs on clients with the docker proxy only (docs/operations.md)")
	}
	only := api.Constraint{LTarget: "${attr." + DockerVersionAttribute + "}", Operand: "regexp", RTarget: regexp.QuoteMeta(DockerProxyMark) + "$"}
	for _, have := range b.job.Constraints {
		if *have == only {
			return true
		}
	}
	b.job.Constraints = append(b.job.Constraints, &only)
	return true
}

// label puts a label onto the container.
func (b *builder) label(c *container, name, value string) {
	labels, ok := c.config["labels"].([]map[string]any)
	if !ok {
		labels = []map[string]any{{}}
		c.config["labels"] = labels
	}
	labels[0][name] = escapeHCL(value)
}

// security carries the security contexts into a docker-shaped configuration.
// What gives a container power over the client is refused unless the virtual
// node allows it.
func (b *builder) security(c *container) {
	b.user(c)
	if groups := b.groups(); len(groups) > 0 {
		c.config["group_add"] = groups
	}
	var opts []string
	if s := c.SecurityContext; s != nil {
		if isTrue(s.Privileged) {
			if !b.in.Node.HostAccess.Privileged {
				b.refuse(c.path+".securityContext.privileged", "privileged containers are not allowed: set virtualNodes[].hostAccess.privileged")
			}
			c.config["privileged"] = true
		}
		b.capabilities(c, s.Capabilities)
		if isTrue(s.ReadOnlyRootFilesystem) {
			c.config["readonly_rootfs"] = true
		}
		if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
			opts = append(opts, "no-new-privileges")
		}
		if s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount {
			b.refuse(c.path+".securityContext.procMount", "%s is not there on Nomad", *s.ProcMount)
		}
		if s.WindowsOptions != nil {
			b.refuse(c.path+".securityContext.windowsOptions", "Windows containers are not supported")
		}
	}
	opts = append(opts, b.profiles(c)...)
	if len(opts) > 0 {
		c.config["security_opt"] = escapeAll(opts)
	}
	b.namespaces(c)
}

func (b *builder) groups() []string {
	s := b.pod.Spec.SecurityContext
	if s == nil {
		return nil
	}
	var out []string
	for _, g := range s.SupplementalGroups {
		out = append(out, strconv.FormatInt(g, 10))
	}
	if s.FSGroup != nil {
		out = append(out, strconv.FormatInt(*s.FSGroup, 10))
	}
	return out
}

func (b *builder) capabilities(c *container, caps *corev1.Capabilities) {
	if caps == nil {
		return
	}
	allowed := b.in.Node.HostAccess.Capabilities
	for _, a := range caps.Add {
		name := capability(a)
		ok := slices.Contains(defaultCapabilities, name)
		for _, h := range allowed {
			h = capability(corev1.Capability(h))
			ok = ok || h == name || h == "ALL"
		}
		if !ok {
			b.refuse(c.path+".securityContext.capabilities.add", "capability %s is not allowed: add it to virtualNodes[].hostAccess.capabilities", name)
		}
	}
	for key, list := range map[string][]corev1.Capability{"cap_add": caps.Add, "cap_drop": caps.Drop} {
		var names []string
		for _, n := range list {
			names = append(names, escapeHCL(capability(n)))
		}
		if len(names) > 0 {
			c.config[key] = names
		}
	}
}

func capability(c corev1.Capability) string {
	return strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
}

// profiles renders seccomp, AppArmor and SELinux as Docker's security options.
func (b *builder) profiles(c *container) (opts []string) {
	var seccomp *corev1.SeccompProfile
	var apparmor *corev1.AppArmorProfile
	var selinux *corev1.SELinuxOptions
	if s := b.pod.Spec.SecurityContext; s != nil {
		seccomp, apparmor, selinux = s.SeccompProfile, s.AppArmorProfile, s.SELinuxOptions
	}
	if s := c.SecurityContext; s != nil {
		seccomp, apparmor, selinux = or(s.SeccompProfile, seccomp), or(s.AppArmorProfile, apparmor), or(s.SELinuxOptions, selinux)
	}
	field := c.path + ".securityContext."
	if seccomp != nil && seccomp.Type != corev1.SeccompProfileTypeRuntimeDefault && b.unconfined(field+"seccompProfile") {
		if seccomp.LocalhostProfile != nil && seccomp.Type == corev1.SeccompProfileTypeLocalhost {
			b.note(field+"seccompProfile", "the profile is read from /var/lib/kubelet/seccomp on the Nomad client")
			opts = append(opts, "seccomp=/var/lib/kubelet/seccomp/"+*seccomp.LocalhostProfile)
		} else {
			opts = append(opts, "seccomp=unconfined")
		}
	}
	if apparmor != nil && apparmor.Type != corev1.AppArmorProfileTypeRuntimeDefault && b.unconfined(field+"appArmorProfile") {
		if apparmor.LocalhostProfile != nil && apparmor.Type == corev1.AppArmorProfileTypeLocalhost {
			opts = append(opts, "apparmor="+*apparmor.LocalhostProfile)
		} else {
			opts = append(opts, "apparmor=unconfined")
		}
	}
	if selinux != nil && b.unconfined(field+"seLinuxOptions") {
		for _, o := range []struct{ key, value string }{
			{"user", selinux.User}, {"role", selinux.Role}, {"type", selinux.Type}, {"level", selinux.Level},
		} {
			if o.value != "" {
				opts = append(opts, "label="+o.key+":"+o.value)
			}
		}
	}
	return opts
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func (b *builder) unconfined(field string) bool {
	if !b.in.Node.HostAccess.Unconfined {
		b.refuse(field, "only the runtime's default is allowed: set virtualNodes[].hostAccess.unconfined")
		return false
	}
	return true
}

// Kubernetes' safe sysctls (pkg/kubelet/sysctl/safe_sysctls.go).
var safeSysctls = []string{
	"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// sysctl is a kernel parameter's name with dots: a first separator that is a
// slash makes slashes and dots change places (sysctl.d(5)).
func sysctl(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// namespaces writes what containers of a pod share with each other and with
// the client.
func (b *builder) namespaces(c *container) {
	spec := &b.pod.Spec
	switch {
	case spec.HostPID:
		c.config["pid_mode"] = "host"
	case isTrue(spec.ShareProcessNamespace) && b.ownAddress():
		// The container that holds the allocation's network namespace.
		c.config["pid_mode"] = "container:nomad_init_${NOMAD_ALLOC_ID}"
	}
	if spec.HostIPC {
		c.config["ipc_mode"] = "host"
	}
	if !b.ownAddress() && !b.row.NoNetwork {
		c.config["network_mode"] = "host"
	}
	if s := spec.SecurityContext; s != nil && len(s.Sysctls) > 0 {
		m := map[string]any{}
		for _, ctl := range s.Sysctls {
			m[sysctl(ctl.Name)] = escapeHCL(ctl.Value)
		}
		c.config["sysctl"] = []map[string]any{m}
	}
}

// podRefusals looks at what concerns the pod as a whole.
func (b *builder) podRefusals() {
	spec, host := &b.pod.Spec, &b.in.Node.HostAccess
	for _, f := range []struct {
		set, allowed bool
		field, key   string
	}{
		{spec.HostNetwork, host.HostNetwork || b.in.Node.Network == NetworkHost, "hostNetwork", "hostNetwork"},
		{spec.HostPID, host.HostPID, "hostPID", "hostPID"},
		{spec.HostIPC, host.HostIPC, "hostIPC", "hostIPC"},
	} {
		if f.set && !f.allowed {
			b.refuse("spec."+f.field, "the Nomad client's namespace is not allowed: set virtualNodes[].hostAccess.%s", f.key)
		}
	}
	if spec.HostUsers != nil && !*spec.HostUsers {
		b.refuse("spec.hostUsers", "user namespaces of a pod are not there on Nomad")
	}
	if isTrue(spec.ShareProcessNamespace) && !b.ownAddress() {
		b.refuse("spec.shareProcessNamespace", "needs a pod with a network namespace of its own")
	}
	if spec.Resources != nil {
		b.refuse("spec.resources", "resources of the pod as a whole are not there yet: give them to its containers")
	}
	if len(spec.ResourceClaims) > 0 {
		b.refuse("spec.resourceClaims", "dynamic resource allocation is not there yet")
	}
	if spec.OS != nil && spec.OS.Name == corev1.Windows {
		b.refuse("spec.os", "Windows pods are not supported")
	}
	if spec.WorkloadRef != nil {
		b.note("spec.workloadRef", "Nomad places each pod on its own")
	}
	b.podSecurity()
}

func (b *builder) podSecurity() {
	s := b.pod.Spec.SecurityContext
	if s == nil {
		return
	}
	if s.FSGroup != nil && b.in.Node.CompanionImage == "" {
		b.note("spec.securityContext.fsGroup", "volumes are not given to the group: set virtualNodes[].companionImage")
	}
	if s.SupplementalGroupsPolicy != nil && *s.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict {
		b.refuse("spec.securityContext.supplementalGroupsPolicy", "Docker adds the image's groups: Strict is not there")
	}
	if s.WindowsOptions != nil {
		b.refuse("spec.securityContext.windowsOptions", "Windows containers are not supported")
	}
	for _, ctl := range s.Sysctls {
		field := "spec.securityContext.sysctls[" + ctl.Name + "]"
		name := sysctl(ctl.Name)
		allowed := func(a string) bool { return sysctl(a) == name }
		switch {
		case !slices.Contains(safeSysctls, name) && !slices.ContainsFunc(b.in.Node.HostAccess.Sysctls, allowed):
			b.refuse(field, "is not allowed: add it to virtualNodes[].hostAccess.sysctls")
		case strings.HasPrefix(name, "net.") && !b.ownAddress():
			b.refuse(field, "net.* is not possible in the client's network namespace")
		}
	}
}
