package config

import "github.com/nomad-kubelet/nomad-kubelet/translate"

// DefaultMHzPerCore is what clients have that are set up as this project
// asks: cpu_total_compute = 1000 * cores, so that a MHz is a millicore.
const DefaultMHzPerCore = 1000

// Profile is what translation has to know of a virtual node. The region is
// the caller's to fill in, and MemoryOversubscription where the configuration
// leaves it to Nomad.
func Profile(n VirtualNode) translate.NodeProfile {
	return translate.NodeProfile{
		Name:                   n.Name,
		Namespace:              n.Namespace,
		NodePool:               n.NodePool,
		Datacenters:            n.Datacenters,
		Network:                n.Network,
		MHzPerCore:             DefaultMHzPerCore,
		MemoryOversubscription: n.MemoryOversubscription != nil && *n.MemoryOversubscription,
		DefaultMemoryMB:        n.DefaultMemoryMB,
		ClusterDNS:             n.ClusterDNS,
		ClusterDomain:          n.ClusterDomain,
		HostAccess:             n.HostAccess,
		Runtimes:               n.Runtimes,
		CompanionImage:         n.CompanionImage,
	}
}
