package translate

import (
	"math"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	mebi = 1 << 20
	// Nomad's own minima (api.MinResources).
	minCPU      = 1
	minMemoryMB = 10
	// unlimitedMemory is Nomad's memory_max for "what the client has".
	unlimitedMemory = -1
)

// resources writes what the task reserves and may use. Nomad sums and takes
// the maximum over init containers as Kubernetes does.
func (b *builder) resources(c *container) {
	r := &api.Resources{CPU: new(b.mhz(c)), Devices: b.devices(c)}
	c.task.Resources = r
	m := b.memory(c.Container)
	reserve, limit := m.reserve, m.limit
	if b.overheadFor(c) {
		extra := int(min(toMB(b.pod.Spec.Overhead[corev1.ResourceMemory]), math.MaxInt32))
		reserve += extra
		if limit > 0 {
			limit += extra
		}
	}
	r.MemoryMB = new(reserve)
	switch {
	case b.row.Driver == driverQemu:
		b.vmMemory(r, reserve)
	case b.row.Driver == driverMock:
	case limit != reserve:
		r.MemoryMaxMB = new(limit)
	}
	if m.note != "" && b.row.Driver != driverMock {
		b.note(c.path+".resources."+m.field, "%s", m.note)
	}
	if len(c.ResizePolicy) > 0 {
		b.note(c.path+".resizePolicy", "resources are not resized in place")
	}
	if len(c.Resources.Claims) > 0 {
		b.refuse(c.path+".resources.claims", "dynamic resource allocation is not there yet")
	}
}

// overheadFor reports whether c is the container that carries the pod's overhead.
func (b *builder) overheadFor(c *container) bool {
	return c.index == len(b.pod.Spec.InitContainers) && len(b.pod.Spec.Overhead) > 0
}

// milliCPU is the request, or the limit where there is none, as the API
// server defaults it.
func milliCPU(c *corev1.Container) int64 {
	if q, ok := c.Resources.Requests[corev1.ResourceCPU]; ok {
		return q.MilliValue()
	}
	q := c.Resources.Limits[corev1.ResourceCPU]
	return q.MilliValue()
}

// mhz is the task's share of the client's MHz.
func (b *builder) mhz(c *container) int {
	milli := milliCPU(c.Container)
	if b.overheadFor(c) {
		q := b.pod.Spec.Overhead[corev1.ResourceCPU]
		milli += q.MilliValue()
	}
	limit, limited := c.Resources.Limits[corev1.ResourceCPU]
	switch {
	case !limited || limit.IsZero() || b.row.Driver == driverMock:
	case b.row.Driver == driverDocker && limit.MilliValue() == milliCPU(c.Container):
		c.config["cpu_hard_limit"] = true
	case b.row.Driver != driverQemu:
		b.note(c.path+".resources.limits.cpu", "is not enforced: Nomad's quota equals the request or there is none; set the request to the limit to have it enforced")
	}
	perCore := b.in.Node.MHzPerCore
	if perCore <= 0 {
		perCore = 1000
	}
	return clampInt(max(minCPU, int64(math.Ceil(float64(milli)*float64(perCore)/1000))))
}

// memoryPlan is what a container's memory becomes, in MiB. A limit that
// equals reserve is none of its own.
type memoryPlan struct {
	reserve, limit int
	field, note    string
}

// memory follows the request, and the limit where Nomad honours memory_max.
func (b *builder) memory(c *corev1.Container) memoryPlan {
	req, hasReq := c.Resources.Requests[corev1.ResourceMemory]
	lim, hasLim := c.Resources.Limits[corev1.ResourceMemory]
	hasReq, hasLim = hasReq && !req.IsZero(), hasLim && !lim.IsZero()
	reserve := max(b.in.Node.DefaultMemoryMB, minMemoryMB)
	if hasLim {
		reserve = mib(lim)
	}
	if hasReq {
		reserve = mib(req)
	}
	over := b.in.Node.MemoryOversubscription
	switch {
	case b.row.Driver == driverQemu, b.row.Driver == driverVirt:
		if hasLim && hasReq && mib(lim) != reserve {
			return memoryPlan{reserve: reserve, limit: reserve, field: "limits.memory", note: "the VM has the memory that it requests"}
		}
		return memoryPlan{reserve: reserve, limit: reserve}
	case hasLim && over:
		return memoryPlan{reserve: reserve, limit: max(mib(lim), reserve)}
	case hasLim:
		p := memoryPlan{reserve: max(mib(lim), reserve), limit: max(mib(lim), reserve)}
		if p.limit != reserve {
			p.field, p.note = "limits.memory", "the limit is reserved in full, since Nomad's memory oversubscription is off"
		}
		return p
	case over:
		return memoryPlan{reserve: reserve, limit: unlimitedMemory}
	case hasReq:
		return memoryPlan{reserve: reserve, limit: reserve, field: "requests.memory", note: "the request is the limit too, since Nomad's memory oversubscription is off"}
	}
	return memoryPlan{reserve: reserve, limit: reserve, field: "limits.memory",
		note: "with neither request nor limit the container gets virtualNodes[].defaultMemoryMB, which is its limit too since Nomad's memory oversubscription is off"}
}

func mib(q resource.Quantity) int { return clampInt(max(minMemoryMB, toMB(q))) }

// toMB rounds up to MiB, which Nomad calls MB; less than nothing is nothing.
func toMB(q resource.Quantity) int64 {
	v := max(q.Value(), 0)
	mb := v / mebi
	if v%mebi != 0 {
		mb++
	}
	return mb
}

func clampInt(v int64) int { return int(min(max(v, 0), math.MaxInt32)) }

// devices turns extended resources into Nomad's: nvidia.com/gpu is what
// Nomad's plugins call nvidia/gpu.
func (b *builder) devices(c *container) []*api.RequestedDevice {
	var out []*api.RequestedDevice
	wanted := map[string]resource.Quantity{}
	for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
		for name, q := range list {
			wanted[string(name)] = q
		}
	}
	for _, name := range sortedKeys(wanted) {
		q := wanted[name]
		field := c.path + ".resources.limits." + name
		domain, kind, extended := strings.Cut(name, "/")
		switch {
		case name == "cpu" || name == "memory" || name == "ephemeral-storage" || q.IsZero():
		case strings.HasPrefix(name, corev1.ResourceHugePagesPrefix):
			b.refuse(field, "huge pages are not there on Nomad")
		case !extended || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io"):
			b.refuse(field, "is no resource that Nomad clients offer")
		default:
			vendor, _, _ := strings.Cut(domain, ".")
			out = append(out, &api.RequestedDevice{Name: vendor + "/" + kind, Count: new(uint64(max(q.Value(), 0)))})
		}
	}
	return out
}
