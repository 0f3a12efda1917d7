package imports

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/annotations"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/export"
)

// perSlice is how many endpoints a slice has at most, as the cluster's own
// (kube-controller-manager, --max-endpoints-per-slice).
const perSlice = 100

// foreign leaves out what this fabric has exported itself.
func foreign(fabric string, entries []*api.ServiceEntry) []*api.ServiceEntry {
	return slices.DeleteFunc(slices.Clone(entries), func(e *api.ServiceEntry) bool {
		return export.From(fabric, e.Service.Meta)
	})
}

// endpoints are the addresses of the passing instances by port. The error tells of
// instances that cannot be endpoints.
func endpoints(entries []*api.ServiceEntry) (map[int32][]netip.Addr, error) {
	by := map[int32][]netip.Addr{}
	var skipped []string
	for _, e := range entries {
		if e.Checks.AggregatedStatus() != api.HealthPassing {
			continue
		}
		text := e.Service.Address
		if text == "" {
			text = e.Node.Address
		}
		// The API server takes no others (validation.ValidateEndpointIP), and the network
		// carries IPv4.
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.Is4() || !addr.IsGlobalUnicast() || e.Service.Port == 0 {
			skipped = append(skipped, fmt.Sprintf("%s:%d", text, e.Service.Port))
			continue
		}
		port := int32(e.Service.Port)
		if !slices.Contains(by[port], addr) {
			by[port] = append(by[port], addr)
		}
	}
	for _, addrs := range by {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	if len(skipped) > 0 {
		slices.Sort(skipped)
		return by, fmt.Errorf("metadata.annotations[%s]: instances without a port or an IPv4 address that others reach cannot be endpoints: %s",
			annotations.Import, strings.Join(slices.Compact(skipped), ", "))
	}
	return by, nil
}

var errNoPort = errors.New("spec.ports: a Service that is imported needs a port, which leads to that of each instance")

// slicesOf are the Service's. Instances have ports of their own, so that there is
// at least one slice a port.
func slicesOf(svc *corev1.Service, by map[int32][]netip.Addr) (map[string]*discoveryv1.EndpointSlice, error) {
	port, err := annotations.PortOf(svc)
	if err != nil {
		return nil, err
	}
	if port == nil {
		return nil, errNoPort
	}
	protocol := port.Protocol
	if protocol == "" {
		protocol = corev1.ProtocolTCP
	}
	all := map[string]*discoveryv1.EndpointSlice{}
	for _, number := range slices.Sorted(maps.Keys(by)) {
		n := 0
		for part := range slices.Chunk(by[number], perSlice) {
			s := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: svc.Namespace, Name: fmt.Sprintf("%s-consul-%d-%d", svc.Name, number, n),
					Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: annotations.Manager},
					// Without blockOwnerDeletion, which needs a right to the Service's finalizers.
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: svc.Name, UID: svc.UID, Controller: new(true)}},
				},
				AddressType: discoveryv1.AddressTypeIPv4,
				Ports:       []discoveryv1.EndpointPort{{Name: new(port.Name), Port: new(number), Protocol: new(protocol)}},
			}
			for _, a := range part {
				s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
			}
			all[s.Name] = s
			n++
		}
	}
	return all, nil
}

// differs says whether a slice is not as it should be; what the API server adds is
// no difference.
func differs(is, want *discoveryv1.EndpointSlice) bool {
	return !equality.Semantic.DeepEqual(is.Ports, want.Ports) || !equality.Semantic.DeepEqual(is.OwnerReferences, want.OwnerReferences) ||
		!slices.EqualFunc(is.Endpoints, want.Endpoints, func(a, b discoveryv1.Endpoint) bool {
			return slices.Equal(a.Addresses, b.Addresses) && a.Conditions.Ready != nil && *a.Conditions.Ready
		})
}
