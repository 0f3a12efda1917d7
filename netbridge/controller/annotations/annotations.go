package annotations

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Names of annotations, on Services unless they say otherwise.
const (
	// Export is "true" or "false"; on a Namespace, for all its Services that do not
	// say otherwise themselves.
	Export = "nomad-kubelet.io/consul-export"
	// Service is what an exported Service is called in Consul; its own name if absent.
	Service = "nomad-kubelet.io/consul-service"
	// Port is the name or number of the Service's port, where it has several.
	Port = "nomad-kubelet.io/consul-port"
	// Import names a service of Consul's whose instances are the Service's endpoints;
	// on a Namespace several, with commas, or "*" for all.
	Import = "nomad-kubelet.io/consul-import"
	// Tag is one that imported instances have.
	Tag = "nomad-kubelet.io/consul-tag"
)

// All is what [Import] says on a Namespace for every service.
const All = "*"

// MadeFor is the label of a Service that was made for its Namespace's [Import];
// its value is [Manager].
const MadeFor = "nomad-kubelet.io/consul-import-made"

// Manager is who manages the EndpointSlices of imported Services.
const Manager = "netbridge.nomad-kubelet.io"

func field(name string) string { return "metadata.annotations[" + name + "]" }

// Exports says whether a Service is to be in Consul, by its own word or its
// Namespace's.
func Exports(svc *corev1.Service, ns *corev1.Namespace) (bool, error) {
	word, said := svc.Annotations[Export]
	if !said && ns != nil {
		word = ns.Annotations[Export]
	}
	switch word {
	case "true":
	case "", "false":
		return false, nil
	default:
		return false, fmt.Errorf("%s: %q is neither \"true\" nor \"false\"", field(Export), word)
	}
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return false, fmt.Errorf("spec.type: a Service of type ExternalName has no endpoints and is not exported: write that name into Consul, or set %s to \"false\"", field(Export))
	case svc.Annotations[Import] != "":
		if !said {
			return false, nil // what comes from Consul is not meant
		}
		return false, fmt.Errorf("%s: what is imported from Consul is not exported: remove one of the two annotations", field(Export))
	}
	return true, nil
}

// Name is what an exported Service is called in Consul.
func Name(svc *corev1.Service) (string, error) {
	name, ok := svc.Annotations[Service]
	if !ok {
		return svc.Name, nil
	}
	if errs := validation.IsDNS1123Label(name); len(errs) > 0 {
		return "", fmt.Errorf("%s: %q could not be asked for by DNS: %s", field(Service), name, errs[0])
	}
	return name, nil
}

// PortOf is the one port of the Service that goes to or comes from Consul; nil if
// it has none.
func PortOf(svc *corev1.Service) (*corev1.ServicePort, error) {
	ports := svc.Spec.Ports
	word, ok := svc.Annotations[Port]
	if !ok {
		switch len(ports) {
		case 0:
			return nil, nil
		case 1:
			return &ports[0], nil
		}
		return nil, fmt.Errorf("%s: the Service has several ports and Consul takes one: name one of %s", field(Port), names(ports))
	}
	i := slices.IndexFunc(ports, func(p corev1.ServicePort) bool {
		return p.Name == word && word != "" || strconv.Itoa(int(p.Port)) == word
	})
	if i < 0 {
		return nil, fmt.Errorf("%s: the Service has no port %q: name one of %s", field(Port), word, names(ports))
	}
	return &ports[i], nil
}

func names(ports []corev1.ServicePort) string {
	var out []string
	for _, p := range ports {
		name := p.Name
		if name == "" {
			name = strconv.Itoa(int(p.Port))
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// Imports is the service, and a tag if not empty, whose instances are the
// Service's endpoints; no name if none is.
func Imports(svc *corev1.Service) (name, tag string, err error) {
	name = svc.Annotations[Import]
	switch {
	case name == "":
		return "", "", nil
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return "", "", fmt.Errorf("spec.type: a Service of type ExternalName has no endpoints: remove the type or %s", field(Import))
	case len(svc.Spec.Selector) > 0:
		return "", "", fmt.Errorf("spec.selector: it chooses the endpoints, which %s would, too: remove one of the two", field(Import))
	}
	return name, svc.Annotations[Tag], nil
}

// ImportedBy lists the services that a Namespace asks for, sorted, or says that it
// asks for all.
func ImportedBy(ns *corev1.Namespace) (names []string, all bool) {
	for name := range strings.SplitSeq(ns.Annotations[Import], ",") {
		switch name = strings.TrimSpace(name); name {
		case "":
		case All:
			all = true
		default:
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), all
}

// CheckName says why no Service can be called as a service of Consul's
// (apimachinery, IsDNS1035Label).
func CheckName(name string) error {
	if errs := validation.IsDNS1035Label(name); len(errs) > 0 {
		return fmt.Errorf("%s: no Service can be called %q: %s; make one of another name with the annotation %s: %q", field(Import), name, errs[0], Import, name)
	}
	return nil
}
