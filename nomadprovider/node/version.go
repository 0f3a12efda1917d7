package node

import (
	"regexp"
	"runtime/debug"
	"strings"
)

// fallbackKubernetes stands in where the binary carries no build information.
const fallbackKubernetes = "v1.35.0"

var notInBuildMetadata = regexp.MustCompile(`[^0-9A-Za-z.-]+`)

// KubeletVersion is what the Node reports as its kubelet's version: the
// Kubernetes release whose libraries this program was built from, with our own
// version as build metadata, so that version comparisons work:
// v1.35.4+nomad-kubelet.0.1.0.
func KubeletVersion(own string) string {
	own = strings.Trim(notInBuildMetadata.ReplaceAllString(strings.TrimPrefix(own, "v"), "-"), "-.")
	if own == "" {
		own = "dev"
	}
	return libraries() + "+nomad-kubelet." + own
}

// ProbeAgent is the user agent of the kubelet's probes: kube-probe/1.35.
func ProbeAgent() string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(libraries(), "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return "kube-probe/" + major + "." + minor
}

// libraries is the Kubernetes release of the libraries.
func libraries() string {
	v := fallbackKubernetes
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path != "k8s.io/client-go" {
				continue
			}
			if m.Replace != nil {
				m = m.Replace
			}
			v = kubernetesVersion(m.Version)
		}
	}
	return v
}

// kubernetesVersion maps a k8s.io module's version to its Kubernetes release:
// v0.35.4 to v1.35.4.
func kubernetesVersion(module string) string {
	if rest, ok := strings.CutPrefix(module, "v0."); ok {
		return "v1." + rest
	}
	return fallbackKubernetes
}
