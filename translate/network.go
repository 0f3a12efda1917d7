package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

// podPortLabel is the port that exists only because Nomad tells tasks the
// allocation's address per port label.
const podPortLabel = "pod"

// ownAddress reports whether the pod has a network namespace of its own.
func (b *builder) ownAddress() bool {
	return !b.pod.Spec.HostNetwork && b.in.Node.Network != NetworkHost && !b.noNetwork()
}

// noNetwork is the row's word, and what is known of the mock driver.
func (b *builder) noNetwork() bool { return b.row.NoNetwork || b.row.Driver == driverMock }

// network writes the group's network: mode, ports of the client, DNS and
// host name.
func (b *builder) network() {
	n := &api.NetworkResource{Mode: "host"}
	if b.ownAddress() {
		n.Mode = string(cmp.Or(b.in.Node.Network, NetworkBridge))
		b.readyClients()
	}
	b.hostPorts(n)
	n.DNS = b.dns()
	if b.row.Driver == driverDocker && b.ownAddress() {
		n.Hostname = b.hostname()
	}
	b.group.Networks = []*api.NetworkResource{n}
}

// readyClients has a pod of the pod network wait for a client that is in it. Nomad
// looks for the network by itself, but a job that waits for one is not told when it
// appears, and a client that gives no addresses any more still has it: both show in
// metadata.
func (b *builder) readyClients() {
	if b.in.Node.Network != NetworkNetbridge {
		return
	}
	b.job.Constraints = append(b.job.Constraints, &api.Constraint{LTarget: "${meta." + NetbridgeMeta + "}", Operand: "=", RTarget: NetbridgeReady})
}

// finishNetwork runs when it is known whether a container asks for the pod's
// address, and leaves out a network that says nothing.
func (b *builder) finishNetwork() {
	n := b.group.Networks[0]
	if b.needPort && b.ownAddress() {
		n.DynamicPorts = append(n.DynamicPorts, api.Port{Label: podPortLabel})
	}
	if n.Mode == "host" && len(n.ReservedPorts) == 0 && n.DNS == nil {
		b.group.Networks = nil
	}
}

// hostPorts reserves the ports that containers take of the client. A
// container's port without one needs nothing of Nomad: it is reached at the
// pod's address.
func (b *builder) hostPorts(n *api.NetworkResource) {
	taken := map[int32]int32{}
	for _, c := range b.containers() {
		for _, p := range c.Ports {
			field := fmt.Sprintf("%s.ports[%d]", c.path, p.ContainerPort)
			if p.HostPort == 0 {
				if b.in.Node.Network == NetworkHost && !b.pod.Spec.HostNetwork {
					b.note(field, "is the Nomad client's port: pods of this virtual node have its network")
				}
				continue
			}
			b.hostPort(n, taken, p, field)
		}
	}
}

func (b *builder) hostPort(n *api.NetworkResource, taken map[int32]int32, p corev1.ContainerPort, field string) {
	host := &b.in.Node.HostAccess
	allowed := host.HostPorts || b.pod.Spec.HostNetwork && (host.HostNetwork || b.in.Node.Network == NetworkHost)
	if !allowed {
		b.refuse(field+".hostPort", "ports of the Nomad client are not allowed: set virtualNodes[].hostAccess.hostPorts")
	}
	if p.Protocol == corev1.ProtocolSCTP {
		b.refuse(field+".protocol", "Nomad maps TCP and UDP ports only")
	}
	if p.HostIP != "" && p.HostIP != "0.0.0.0" && p.HostIP != "::" {
		b.refuse(field+".hostIP", "Nomad's static ports are a client's, not one of its addresses': leave it out")
	}
	to, seen := taken[p.HostPort]
	switch {
	case seen && to == p.ContainerPort:
		return // Nomad maps both protocols.
	case seen:
		b.refuse(field+".hostPort", "port %d is mapped to two container ports, and Nomad maps TCP and UDP together", p.HostPort)
		return
	}
	taken[p.HostPort] = p.ContainerPort
	port := api.Port{Label: fmt.Sprintf("p%d", p.HostPort), Value: int(p.HostPort)}
	if b.ownAddress() {
		port.To = int(p.ContainerPort)
	}
	n.ReservedPorts = append(n.ReservedPorts, port)
	if b.ownAddress() && b.in.Node.Network == NetworkNetbridge {
		b.noteCommon(field+".hostPort", "is the client's only where its netbridge agent has cni.hostPorts")
	}
}

// dns follows the kubelet's DNS policies (pkg/kubelet/network/dns). nil
// leaves the client's resolver.
func (b *builder) dns() *api.DNSConfig {
	spec := &b.pod.Spec
	policy := spec.DNSPolicy
	if policy == "" || policy == corev1.DNSClusterFirst && spec.HostNetwork {
		policy = corev1.DNSClusterFirst
		if spec.HostNetwork {
			policy = corev1.DNSDefault
		}
	}
	d := &api.DNSConfig{}
	switch policy {
	case corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet:
		if len(b.in.Node.ClusterDNS) == 0 {
			b.noteCommon("spec.dnsPolicy", "the client's DNS is used: virtualNodes[].clusterDNS is not set")
			break
		}
		d.Servers = slices.Clone(b.in.Node.ClusterDNS)
		if domain := b.in.Node.ClusterDomain; domain != "" {
			d.Searches = []string{b.pod.Namespace + ".svc." + domain, "svc." + domain, domain}
		}
		d.Options = []string{"ndots:5"}
	case corev1.DNSNone:
		if spec.DNSConfig == nil {
			b.refuse("spec.dnsConfig", "must be given when dnsPolicy is None")
		}
	}
	if c := spec.DNSConfig; c != nil {
		if len(d.Servers) == 0 && policy != corev1.DNSNone && len(c.Nameservers) > 0 {
			b.note("spec.dnsConfig", "replaces the client's name servers rather than adding to them")
		}
		d.Servers = unique(append(d.Servers, c.Nameservers...))
		d.Searches = unique(append(d.Searches, c.Searches...))
		d.Options = mergeOptions(d.Options, c.Options)
	}
	b.dnsLimits(d)
	if len(d.Servers)+len(d.Searches)+len(d.Options) == 0 {
		return nil
	}
	return d
}

// What the kubelet writes at most (pkg/apis/core/validation): resolvers take no more.
const (
	maxNameservers     = 3
	maxSearchPaths     = 32
	maxSearchListChars = 2048
)

// dnsLimits leaves out what the kubelet does (pkg/kubelet/network/dns,
// formDNSSearchFitsLimits and formDNSNameserversFitsLimits), and tells of it.
func (b *builder) dnsLimits(d *api.DNSConfig) {
	if len(d.Servers) > maxNameservers {
		d.Servers = d.Servers[:maxNameservers]
		b.note("spec.dnsConfig.nameservers", "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: %s",
			strings.Join(d.Servers, " "))
	}
	n := min(len(d.Searches), maxSearchPaths)
	for len(strings.Join(d.Searches[:n], " ")) > maxSearchListChars {
		n--
	}
	if n < len(d.Searches) {
		d.Searches = d.Searches[:n]
		b.note("spec.dnsConfig.searches", "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: %s",
			strings.Join(d.Searches, " "))
	}
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mergeOptions lets the pod's options replace those of the same name.
func mergeOptions(base []string, add []corev1.PodDNSConfigOption) []string {
	values, order := map[string]string{}, []string{}
	set := func(name, rendered string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = rendered
	}
	for _, o := range base {
		name, _, _ := strings.Cut(o, ":")
		set(name, o)
	}
	for _, o := range add {
		if o.Value != nil && *o.Value != "" {
			set(o.Name, o.Name+":"+*o.Value)
		} else {
			set(o.Name, o.Name)
		}
	}
	var out []string
	for _, name := range order {
		out = append(out, values[name])
	}
	return out
}

// maxHostname is the kernel's limit of a host name, in bytes.
const maxHostname = 64

// hostname is what the kubelet's GeneratePodHostNameAndDomain yields.
func (b *builder) hostname() string {
	spec := &b.pod.Spec
	if o := spec.HostnameOverride; o != nil && *o != "" {
		return *o
	}
	short := b.shortHostname()
	if !isTrue(spec.SetHostnameAsFQDN) || spec.Subdomain == "" {
		return short
	}
	fqdn := b.fqdn()
	if len(fqdn) > maxHostname {
		b.refuse("spec.setHostnameAsFQDN", "Failed to construct FQDN from Pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)",
			fqdn, maxHostname, len(fqdn))
		return short
	}
	return fqdn
}

func (b *builder) shortHostname() string {
	if b.pod.Spec.Hostname != "" {
		return b.pod.Spec.Hostname
	}
	h := b.pod.Name
	if len(h) > 63 {
		h = strings.TrimRight(h[:63], "-.")
	}
	return h
}

// fqdn is the pod's name in the cluster's DNS.
func (b *builder) fqdn() string {
	return strings.Join([]string{b.shortHostname(), b.pod.Spec.Subdomain, b.pod.Namespace, "svc", b.in.Node.ClusterDomain}, ".")
}
