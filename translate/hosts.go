package translate

import (
	"path"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

const (
	etcHosts   = "/etc/hosts"
	resolvConf = "/etc/resolv.conf"
	// hostsFile is where a container's own hosts file lies in its task's directory.
	hostsFile = "local/.k8s/hosts"
)

// ownHosts says whether the pod's containers are given the kubelet's hosts file
// rather than Nomad's, which has no aliases and lets no volume take its place.
// What it costs is a port, by whose label a task learns the pod's address. A job
// that joins a pod has no other way to a hosts file.
func (b *builder) ownHosts() bool {
	if b.row.Driver != driverDocker || !b.ownAddress() {
		return false
	}
	if len(b.pod.Spec.HostAliases) > 0 || b.domainName() != "" || b.podIP != "" {
		return true
	}
	for _, c := range b.containers() {
		if mountsAt(c, etcHosts) {
			return true
		}
	}
	return false
}

func mountsAt(c *container, target string) bool {
	for _, m := range c.VolumeMounts {
		if path.Clean("/"+m.MountPath) == target {
			return true
		}
	}
	return false
}

// domainName is the pod's name in the cluster's DNS, "" when it has none.
func (b *builder) domainName() string {
	if b.pod.Spec.Subdomain == "" || b.in.Node.ClusterDomain == "" || b.pod.Spec.HostnameOverride != nil && *b.pod.Spec.HostnameOverride != "" {
		return ""
	}
	return b.fqdn()
}

// hosts gives the container the hosts file of the kubelet
// (pkg/kubelet/kubelet_pods.go, managedHostsFileContent), unless a volume is
// mounted there. Nomad leaves /etc/hosts alone in a task that names its network
// itself: the same one, that of the container that holds the allocation's.
func (b *builder) hosts(c *container) map[string]any {
	if !b.ownHosts() {
		return nil
	}
	c.config["network_mode"] = "container:nomad_init_${NOMAD_ALLOC_ID}"
	if mountsAt(c, etcHosts) {
		return nil
	}
	head := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	names := b.hostname()
	if fqdn := b.domainName(); fqdn != "" {
		names = fqdn + "\t" + b.shortHostname()
	}
	tail := "\t" + names + "\n"
	if len(b.pod.Spec.HostAliases) > 0 {
		tail += "\n# Entries added by HostAliases.\n"
	}
	for _, a := range b.pod.Spec.HostAliases {
		tail += a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n"
	}
	v := text{{lit: head}, {run: runPodIP}, {lit: tail}}
	if b.podIP != "" {
		v = literal(head + b.podIP + tail)
	}
	b.useRuntime(v)
	c.task.Templates = append(c.task.Templates, &api.Template{
		EmbeddedTmpl: new("{{ " + v.template() + " }}"),
		DestPath:     new(hostsFile),
		Perms:        new("0644"),
		Once:         new(true),
		ChangeMode:   new("noop"),
	})
	return bindMount(hostsFile, etcHosts, false, "")
}

// hostAliases are lines of /etc/hosts, name:address, for drivers that are not
// given the file. All containers get the same: Nomad writes the allocation's
// file once.
func hostAliases(pod *corev1.Pod) []string {
	var out []string
	for _, a := range pod.Spec.HostAliases {
		for _, name := range a.Hostnames {
			out = append(out, escapeHCL(name+":"+a.IP))
		}
	}
	return out
}
