package translate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What is more than resolvers take is left out as the kubelet does, and told.
func TestDNSLimits(t *testing.T) {
	in := testInputs()
	in.Node.ClusterDNS = []string{"10.96.0.10", "10.96.0.11"}
	long := strings.Repeat("a", 60)
	var many, wide []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("d%d.example", i))
		wide = append(wide, fmt.Sprintf("d%02d.%s.%s.example", i, long, long))
	}
	for name, tc := range map[string]struct {
		searches []string
		count    int
		last     string
	}{"too many": {many, 32, "d28.example"}, "too wide": {wide[:20], 17, wide[13]}} {
		pod := podWith(func(p *corev1.Pod, _ *corev1.Container) {
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2"}, Searches: tc.searches}
		})
		res, err := Job(pod, in)
		if err != nil {
			t.Fatal(err)
		}
		d := res.Job.TaskGroups[0].Networks[0].DNS
		if !slices.Equal(d.Servers, []string{"10.96.0.10", "10.96.0.11", "192.0.2.1"}) {
			t.Errorf("%s: servers %v", name, d.Servers)
		}
		if n := len(d.Searches); n != tc.count || d.Searches[n-1] != tc.last || len(strings.Join(d.Searches, " ")) > 2048 {
			t.Errorf("%s: %d search paths, the last %s, %d characters", name, n, d.Searches[n-1], len(strings.Join(d.Searches, " ")))
		}
		var fields []string
		for _, n := range res.Notes {
			fields = append(fields, n.Field)
		}
		if !slices.Contains(fields, "spec.dnsConfig.nameservers") || !slices.Contains(fields, "spec.dnsConfig.searches") {
			t.Errorf("%s: notes on %v", name, fields)
		}
	}
}
