package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// client checks one Nomad client: by what it has reported of itself, and by
// its agent's configuration where that may be read.
func (d *Doctor) client(ctx context.Context, r *report.Report, c poolClient) {
	where := "client " + c.node.Name
	d.drivers(r, where, c)
	d.cni(r, where, c)
	d.podNetwork(r, where, c)
	d.accelerator(r, where, c)
	d.compute(r, where, c.node)
	self, err := d.agent(ctx, c.node)
	if err != nil {
		r.Add(report.Check{Where: where, What: "agent settings", Result: report.Unknown, Found: err.Error(),
			Breaks: "kept grace periods, logs of finished pods, and pods surviving an outage of Nomad's servers depend on them",
			Remedy: "on that machine compare its configuration with deploy/nomad/client.hcl:\n" +
				"nomad agent-info; grep -A4 -E 'nomad_retry|max_stale|max_kill_timeout|gc_max_allocs|allow_caps|http_max_conns|publish_allocation' /etc/nomad.d/*.hcl"})
		return
	}
	for _, s := range clientSettings {
		s.check(r, where, self)
	}
	if slices.Contains(drivers(c), "docker") {
		capabilities(r, where, self, slices.Concat(c.vn.HostAccess.Capabilities, tapCapabilities(c)))
		if c.vn.HostAccess.Privileged && !self.plugin("docker").boolean("allow_privileged") {
			r.Add(report.Check{Where: where, What: "docker privileged", Result: report.Warn, Found: "off", Breaks: "privileged pods, which hostAccess allows, fail to start",
				Remedy: `plugin "docker" { config { allow_privileged = true } }`})
		}
	}
}

// drivers that the virtual node's runtimes name.
func drivers(c poolClient) []string {
	var out []string
	for _, rt := range c.vn.Runtimes {
		if !slices.Contains(out, rt.Driver) {
			out = append(out, rt.Driver)
		}
	}
	slices.Sort(out)
	return out
}

func (d *Doctor) drivers(r *report.Report, where string, c poolClient) {
	for _, name := range drivers(c) {
		info := c.node.Drivers[name]
		switch {
		case info == nil || !info.Detected:
			r.Add(report.Check{Where: where, What: "driver " + name, Result: report.Warn, Found: "not there", Breaks: "pods of that runtime are placed on other clients only", Remedy: driverRemedy(name)})
			continue
		case !info.Healthy:
			r.Add(report.Check{Where: where, What: "driver " + name, Result: report.Warn, Found: "unhealthy: " + info.HealthDescription, Breaks: "pods of that runtime are placed on other clients only", Remedy: driverRemedy(name)})
			continue
		}
		version := c.node.Attributes["driver."+name+".version"]
		if name != "docker" {
			r.OK(where, "driver "+name, version)
			continue
		}
		// The driver reports this attribute only when volumes are on
		// (drivers/docker/fingerprint.go).
		if on := c.node.Attributes["driver.docker.volumes.enabled"]; on != "1" && on != "true" {
			r.Add(report.Check{Where: where, What: "driver docker", Result: report.Fail, Found: version + ", volumes are off",
				Breaks: "pods with any volume, ConfigMap, Secret or service account token fail to start",
				Remedy: `plugin "docker" { config { volumes { enabled = true } } }`})
			continue
		}
		r.OK(where, "driver docker", version+", volumes on")
		if !strings.Contains(version, translate.DockerProxyMark) {
			r.Add(report.Check{Where: where, What: "docker proxy", Result: report.Warn, Found: "not there",
				Breaks: "logs of containers that end at once are cut off; runAsNonRoot and runAsGroup need runAsUser; network probes cost 1.4 % of a core a pod",
				Remedy: "companion docker-proxy before Nomad on that machine: docs/operations.md, The docker proxy"})
		} else {
			r.OK(where, "docker proxy", version)
		}
	}
}

// cniPlugins are what Nomad's bridge network runs (client/allocrunner/networking_bridge_linux.go).
var cniPlugins = []string{"bridge", "firewall", "host-local", "loopback", "portmap"}

// ownCNIPlugins are what a network of the operator's has at least; netbridge's
// configuration names these.
var ownCNIPlugins = []string{"bridge", "loopback"}

func (d *Doctor) cni(r *report.Report, where string, c poolClient) {
	if !networked(c.vn) {
		return
	}
	var missing []string
	plugins := cniPlugins
	if _, own := c.vn.Network.CNI(); own {
		plugins = ownCNIPlugins
	}
	for _, p := range plugins {
		if c.node.Attributes["plugins.cni.version."+p] == "" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		r.OK(where, "CNI plugins", strings.Join(plugins, ", "))
		return
	}
	r.Add(report.Check{Where: where, What: "CNI plugins", Result: report.Fail, Found: "missing: " + strings.Join(missing, ", "),
		Breaks: "no pod with a network of its own is placed on this client",
		Remedy: "apt-get install containernetworking-plugins, and client { cni_path = \"/usr/lib/cni\" }, then restart Nomad"})
}

// podNetwork tells whether the client takes pods of the pod network.
func (d *Doctor) podNetwork(r *report.Report, where string, c poolClient) {
	const what = "pod network"
	switch {
	case c.vn.Network != translate.NetworkNetbridge:
	case c.node.Meta[translate.NetbridgeMeta] == translate.NetbridgeReady:
		r.OK(where, what, "netbridge's agent says that it is ready")
	default:
		r.Add(report.Check{Where: where, What: what, Result: report.Fail, Found: "netbridge's agent does not say that it is ready",
			Breaks: "no pod is placed on this client",
			Remedy: "start netbridge agent there, with a Nomad token that may write nodes; netbridge status; send the Nomad agent one SIGHUP"})
	}
}

// accelerator tells by what the client's VMs run.
func (d *Doctor) accelerator(r *report.Report, where string, c poolClient) {
	const what = "VM accelerator"
	info := c.node.Drivers["qemu"]
	if !slices.Contains(drivers(c), "qemu") || info == nil || !info.Healthy {
		return
	}
	if found := c.node.Meta[translate.AcceleratorMeta]; found != "" {
		r.OK(where, what, found)
		return
	}
	r.Add(report.Check{Where: where, What: what, Result: report.Warn, Found: "not known", Breaks: "VMs run in software (tcg) there, or on other clients",
		Remedy: "nomad-kubelet tries it when it runs and its Nomad token may write nodes; or client { meta { " + translate.AcceleratorMeta + ` = "kvm" } }`})
}

// compute tells how Nomad's MHz relate to cores.
func (d *Doctor) compute(r *report.Report, where string, n *api.Node) {
	if n.NodeResources == nil || n.NodeResources.Cpu.TotalCpuCores == 0 {
		r.Add(report.Check{Where: where, What: "CPU scale", Result: report.Unknown, Found: "the client reports no cores", Remedy: "nomad node status -verbose " + n.ID})
		return
	}
	cores := int64(n.NodeResources.Cpu.TotalCpuCores)
	mhz := n.NodeResources.Cpu.CpuShares
	if mhz == 1000*cores {
		r.OK(where, "CPU scale", fmt.Sprintf("%d cores, 1 MHz is 1 millicore", cores))
		return
	}
	r.Add(report.Check{Where: where, What: "CPU scale", Result: report.Warn, Found: fmt.Sprintf("%d cores count %d MHz", cores, mhz),
		Breaks: "where clients of a pool differ, a pod's CPU request takes more of a slower one than it needs",
		Remedy: fmt.Sprintf("client { cpu_total_compute = %d }", 1000*cores)})
}

// dockerCaps is Docker's default set, without which pods that add or drop
// capabilities are refused.
var dockerCaps = []string{"audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod",
	"net_bind_service", "net_raw", "setfcap", "setgid", "setpcap", "setuid", "sys_chroot"}

// tapCapabilities are the companions' whose guests have their pods' addresses.
func tapCapabilities(c poolClient) []string {
	for _, rt := range c.vn.Runtimes {
		if rt.Driver == "qemu" && rt.Config[translate.RowNetwork] == translate.VMNetworkTap {
			return translate.VMTapCapabilities
		}
	}
	return nil
}

func capabilities(r *report.Report, where string, self *agentSelf, allowed []string) {
	have := self.plugin("docker").list("allow_caps")
	if slices.Contains(have, "all") {
		r.OK(where, "docker allow_caps", "all")
		return
	}
	want := slices.Clone(dockerCaps)
	if have == nil {
		// Nomad's own default is Docker's without net_raw
		// (drivers/shared/capabilities/defaults.go).
		have = slices.DeleteFunc(slices.Clone(dockerCaps), func(c string) bool { return c == "net_raw" })
	}
	for _, c := range allowed {
		if c = strings.ToLower(strings.TrimPrefix(c, "CAP_")); !slices.Contains(want, c) {
			want = append(want, c)
		}
	}
	missing := slices.DeleteFunc(want, func(c string) bool { return slices.Contains(have, c) })
	if len(missing) == 0 {
		r.OK(where, "docker allow_caps", "all that pods may ask for")
		return
	}
	r.Add(report.Check{Where: where, What: "docker allow_caps", Result: report.Warn, Found: "missing: " + strings.Join(missing, ", "),
		Breaks: "pods that need these capabilities fail to start (net_raw: ping; net_admin: VMs whose runtime has config.network: tap)",
		Remedy: `plugin "docker" { config { allow_caps = [...] } } as in deploy/nomad/client.hcl`})
}
