package export

import (
	"fmt"
	"maps"
	"net/netip"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
)

// Keys of an instance's metadata. Consul's UI shows the first.
const (
	MetaSource = "external-source"
	MetaFabric = "netbridge-fabric"
	// MetaCluster tells clusters of one fabric apart by the UIDs of their namespaces
	// kube-system.
	MetaCluster   = "kubernetes-cluster"
	MetaNamespace = "kubernetes-namespace"
	MetaService   = "kubernetes-service"
	// Source is the value of MetaSource.
	Source = "kubernetes"
)

// From says whether an instance with such metadata was exported by the fabric.
func From(fabric string, meta map[string]string) bool {
	return meta[MetaSource] == Source && meta[MetaFabric] == fabric
}

// origin is the Service that an instance comes from, as namespace/name.
func origin(meta map[string]string) string { return meta[MetaNamespace] + "/" + meta[MetaService] }

// instances are what a Service is in Consul, by their IDs.
func instances(fabric, cluster string, svc *corev1.Service, slices []*discoveryv1.EndpointSlice) (map[string]*api.AgentService, error) {
	name, err := annotations.Name(svc)
	if err != nil {
		return nil, err
	}
	port, err := annotations.PortOf(svc)
	if err != nil {
		return nil, err
	}
	all := map[string]*api.AgentService{}
	for _, slice := range slices {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue // the network carries IPv4
		}
		number, ok := number(slice, port)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			// Not known is to be taken for ready (discovery/v1, EndpointConditions).
			if len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			id := fmt.Sprintf("%s/%s/%s", svc.Namespace, svc.Name, netip.AddrPortFrom(addr, uint16(number)))
			all[id] = &api.AgentService{ID: id, Service: name, Address: addr.String(), Port: int(number), Meta: map[string]string{
				MetaSource: Source, MetaFabric: fabric, MetaCluster: cluster, MetaNamespace: svc.Namespace, MetaService: svc.Name,
			}}
		}
	}
	return all, nil
}

// number is where the slice's endpoints listen for the Service's port; 0 if it has
// none at all, as a headless Service may.
func number(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) (int32, bool) {
	if port == nil {
		return 0, true
	}
	for _, p := range slice.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name == port.Name && p.Port != nil {
			return *p.Port, true
		}
	}
	return 0, false
}

func same(a, b *api.AgentService) bool {
	return a.Service == b.Service && a.Address == b.Address && a.Port == b.Port && maps.Equal(a.Meta, b.Meta)
}
