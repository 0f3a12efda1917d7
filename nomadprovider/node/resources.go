package node

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// defaultMHzPerCore is what a core counts while no client is known.
const defaultMHzPerCore = 1000

// poolSummary is what the placeable clients of a pool are in sum.
type poolSummary struct {
	// members are all of the pool's clients, ready those that can take pods.
	members, ready int
	mhzPerCore     int
	capacity       corev1.ResourceList
	allocatable    corev1.ResourceList
	// dockerProxy is set when a client that can take pods has the docker proxy.
	dockerProxy bool
	// qemu counts the clients that can take VMs and of which it is known by what
	// they run them, kvm those that do by KVM.
	qemu, kvm int
	// sample stands for the pool where one value is wanted: the first ready
	// client, else the first.
	sample ClientInfo
	// arch is that of all ready clients, else the most frequent one.
	arch string
}

// summarize adds up the clients of a pool.
func summarize(clients []ClientInfo, pool string, datacenters []string, podsPerClient int) poolSummary {
	s := poolSummary{mhzPerCore: defaultMHzPerCore}
	var ready []ClientInfo
	archs := map[string]int{}
	rate := int64(0)
	for _, c := range clients {
		if !inPool(c, pool, datacenters) {
			continue
		}
		s.members++
		if c.Cores > 0 {
			rate = max(rate, (c.MHz+c.Cores-1)/c.Cores)
		}
		if s.members == 1 {
			s.sample = c
		}
		if !c.Ready() {
			continue
		}
		if len(ready) == 0 {
			s.sample = c
		}
		ready = append(ready, c)
		s.dockerProxy = s.dockerProxy || c.DockerProxy
		if c.QEMU && c.Accelerator != "" {
			s.qemu++
			if c.Accelerator == translate.AcceleratorKVM {
				s.kvm++
			}
		}
		archs[c.Arch]++
		if s.arch == "" || archs[c.Arch] > archs[s.arch] {
			s.arch = c.Arch
		}
	}
	s.ready = len(ready)
	if s.arch == "" {
		s.arch = s.sample.Arch
	}
	if rate > 0 {
		s.mhzPerCore = int(rate)
	}
	s.addUp(ready, podsPerClient)
	return s
}

// kvmLabel is the value of the Node's label on KVM, empty while nothing is known.
func (s *poolSummary) kvmLabel() string {
	switch {
	case s.qemu == 0:
		return ""
	case s.kvm == 0:
		return "false"
	case s.kvm < s.qemu:
		return "some"
	}
	return "true"
}

// addUp counts CPU in cores of the pool's fastest client: the same MHz that a
// pod's request becomes.
func (s *poolSummary) addUp(ready []ClientInfo, podsPerClient int) {
	var mhz, freeMHz, mem, freeMem, disk, freeDisk int64
	devs := map[string]int64{}
	for _, c := range ready {
		mhz += c.MHz
		freeMHz += max(0, c.MHz-c.ReservedMHz)
		mem += c.MemoryMB
		freeMem += max(0, c.MemoryMB-c.ReservedMemoryMB)
		disk += c.DiskMB
		freeDisk += max(0, c.DiskMB-c.ReservedDiskMB)
		for name, n := range c.Devices {
			devs[name] += n
		}
	}
	s.capacity = s.list(mhz, mem, disk, int64(podsPerClient*len(ready)), devs)
	s.allocatable = s.list(freeMHz, freeMem, freeDisk, int64(podsPerClient*len(ready)), devs)
}

func (s *poolSummary) list(mhz, memMB, diskMB, pods int64, devs map[string]int64) corev1.ResourceList {
	const mib = 1 << 20
	l := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewMilliQuantity(mhz*1000/int64(s.mhzPerCore), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memMB*mib, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(diskMB*mib, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(pods, resource.DecimalSI),
	}
	for name, n := range devs {
		l[corev1.ResourceName(name)] = *resource.NewQuantity(n, resource.DecimalSI)
	}
	return l
}
