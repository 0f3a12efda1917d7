package translate

import (
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// masterService is told to every pod, whatever enableServiceLinks says.
const masterService = "kubernetes"

// serviceEnv is the kubelet's getServiceEnvVarMap (pkg/kubelet/kubelet_pods.go)
// with FromServices (pkg/kubelet/envvars): the variables by which a
// container finds the services that were there when its pod started.
func (b *builder) serviceEnv() map[string]string {
	links := b.pod.Spec.EnableServiceLinks == nil || *b.pod.Spec.EnableServiceLinks
	chosen := map[string]*corev1.Service{}
	for i := range b.in.Services {
		s := &b.in.Services[i]
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		switch {
		case s.Namespace == metav1.NamespaceDefault && s.Name == masterService:
			if _, ok := chosen[s.Name]; !ok {
				chosen[s.Name] = s
			}
		case s.Namespace == b.pod.Namespace && links:
			chosen[s.Name] = s
		}
	}
	out := map[string]string{}
	for _, name := range sortedKeys(chosen) {
		serviceVariables(chosen[name], out)
	}
	return out
}

func serviceVariables(s *corev1.Service, out map[string]string) {
	ip, prefix := s.Spec.ClusterIP, variableName(s.Name)
	out[prefix+"_SERVICE_HOST"] = ip
	out[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			out[prefix+"_SERVICE_PORT_"+variableName(p.Name)] = port
		}
		protocol := "TCP"
		if p.Protocol != "" {
			protocol = strings.ToUpper(string(p.Protocol))
		}
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out[prefix+"_PORT"] = url
		}
		at := prefix + "_PORT_" + port + "_" + protocol
		out[at] = url
		out[at+"_PROTO"] = strings.ToLower(protocol)
		out[at+"_PORT"] = port
		out[at+"_ADDR"] = ip
	}
}

func variableName(s string) string {
	return strings.ToUpper(strings.ReplaceAll(s, "-", "_"))
}
