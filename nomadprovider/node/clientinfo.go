package node

import (
	"net"
	"strings"

	"github.com/hashicorp/nomad/api"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// ClientInfo is what is kept of a Nomad client node.
type ClientInfo struct {
	ID, Name, Datacenter, Pool, Class string
	// HostIP is the attribute unique.network.ip-address, else the host part of
	// HTTPAddr.
	HostIP string
	// HTTPAddr is the address of the client agent's HTTP API, host:port.
	HTTPAddr string
	TLS      bool
	// Arch and OS are Go's names: amd64, linux.
	Arch, OS string
	// Kernel, OSImage and NomadVersion are informative.
	Kernel, OSImage, NomadVersion string
	// Status is Nomad's: initializing, ready, down, disconnected.
	Status string
	// Eligible is set when Nomad may place allocations there: eligible and not
	// draining.
	Eligible bool
	// MHz is the total compute of all cores; Reserved* is kept back by the
	// client's configuration.
	MHz, ReservedMHz           int64
	Cores                      int64
	MemoryMB, ReservedMemoryMB int64
	DiskMB, ReservedDiskMB     int64
	// Devices counts healthy instances by Kubernetes' name: nvidia.com/gpu.
	Devices map[string]int64
	// DockerProxy is set when the docker driver talks to its engine through
	// the proxy of package dockerproxy.
	DockerProxy bool
	// QEMU is set when the qemu driver is there, and Accelerator is what its guests
	// run by, as [translate.AcceleratorMeta] says; empty while nothing is known.
	QEMU        bool
	Accelerator string
	// HostVolumes are where the client has its host volumes, by name, and
	// VolumePlugins what it can make them with.
	HostVolumes   map[string]string
	VolumePlugins []string

	index uint64
}

// Ready tells whether new allocations can be placed on the client.
func (c ClientInfo) Ready() bool { return c.Status == api.NodeStatusReady && c.Eligible }

func clientInfo(n *api.Node) ClientInfo {
	c := ClientInfo{
		ID: n.ID, Name: n.Name, Datacenter: n.Datacenter, Pool: n.NodePool, Class: n.NodeClass,
		HostIP:       n.Attributes["unique.network.ip-address"],
		HTTPAddr:     n.HTTPAddr,
		TLS:          n.TLSEnabled,
		Arch:         goArch(n.Attributes["cpu.arch"]),
		OS:           n.Attributes["kernel.name"],
		Kernel:       n.Attributes["kernel.version"],
		OSImage:      strings.TrimSpace(n.Attributes["os.name"] + " " + n.Attributes["os.version"]),
		NomadVersion: n.Attributes["nomad.version"],
		Status:       n.Status,
		Eligible:     n.SchedulingEligibility == api.NodeSchedulingEligible && n.DrainStrategy == nil && !n.Drain,
		DockerProxy:  strings.Contains(n.Attributes[translate.DockerVersionAttribute], translate.DockerProxyMark),
		QEMU:         isTrue(n.Attributes["driver.qemu"]),
		Accelerator:  n.Meta[translate.AcceleratorMeta],
		index:        n.ModifyIndex,
	}
	if c.HostIP == "" {
		c.HostIP, _, _ = net.SplitHostPort(n.HTTPAddr)
	}
	for name, v := range n.HostVolumes {
		if c.HostVolumes == nil {
			c.HostVolumes = map[string]string{}
		}
		c.HostVolumes[name] = v.Path
	}
	for name := range n.Attributes {
		if plugin, ok := strings.CutPrefix(name, "plugins.host_volume."); ok {
			if plugin, ok = strings.CutSuffix(plugin, ".version"); ok {
				c.VolumePlugins = append(c.VolumePlugins, plugin)
			}
		}
	}
	if r := n.NodeResources; r != nil {
		c.MHz, c.Cores = r.Cpu.CpuShares, int64(r.Cpu.TotalCpuCores)
		c.MemoryMB, c.DiskMB = r.Memory.MemoryMB, r.Disk.DiskMB
		c.Devices = devices(r.Devices)
	}
	if r := n.ReservedResources; r != nil {
		c.ReservedMHz = int64(r.Cpu.CpuShares)
		c.ReservedMemoryMB, c.ReservedDiskMB = int64(r.Memory.MemoryMB), int64(r.Disk.DiskMB)
	}
	return c
}

// isTrue reads a driver's attribute.
func isTrue(attribute string) bool { return attribute == "1" || attribute == "true" }

// goArch maps what uname says to what Kubernetes uses; Nomad reports GOARCH.
func goArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}

// devices counts healthy instances. Devices whose name would not be one of a
// Kubernetes resource are left out.
func devices(groups []*api.NodeDeviceResource) map[string]int64 {
	var out map[string]int64
	for _, g := range groups {
		name := DeviceResource(g.Vendor, g.Type)
		if len(validation.IsQualifiedName(name)) > 0 {
			continue
		}
		for _, i := range g.Instances {
			if !i.Healthy {
				continue
			}
			if out == nil {
				out = map[string]int64{}
			}
			out[name]++
		}
	}
	return out
}

// DeviceResource is the Kubernetes resource of a Nomad device: nvidia/gpu is
// nvidia.com/gpu. A vendor that is a domain already stays as it is.
func DeviceResource(vendor, kind string) string {
	if !strings.Contains(vendor, ".") {
		vendor += ".com"
	}
	return vendor + "/" + kind
}
