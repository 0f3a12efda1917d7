package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/resolver"
)

const (
	dnsPort      = 53
	resolverFile = "/etc/resolv.conf"
)

// answerNames has the pods of a Nomad client answered, if that is asked for, by the
// fabric's settings and the machine's servers as they are now. Pods are reached
// without it: what is wrong is told, and tried again at the next claim.
func (a *Agent) answerNames(ctx context.Context) {
	address := a.Config.DNS.Address
	if !address.IsValid() {
		return
	}
	if a.resolver == nil {
		a.resolver = resolver.New(a.Log.Named("dns"), func(zone, from string) { a.metrics.dns.WithLabelValues(zone, from).Inc() })
	}
	zones, err := a.zones()
	a.resolver.SetZones(zones)
	if !a.answers {
		listen := a.resolver.Serve(ctx, netip.AddrPortFrom(address, dnsPort).String())
		a.answers = listen == nil
		err = errors.Join(err, listen)
	}
	a.problem("dns", err)
}

func (a *Agent) zones() ([]resolver.Zone, error) {
	s, c := a.state.Settings, a.Config.DNS
	cluster := resolver.Zone{Name: "cluster", Domains: []string{dns.Fqdn(s.DNS.Domain)}, Ranges: slices.Clone(s.ClusterCIDRs)}
	for _, p := range []netip.Prefix{s.BurstCIDR, s.ServiceCIDR} {
		if p.IsValid() {
			cluster.Ranges = append(cluster.Ranges, p)
		}
	}
	for _, server := range s.DNS.Servers {
		cluster.Servers = append(cluster.Servers, netip.AddrPortFrom(server, dnsPort).String())
	}
	rest := resolver.Zone{Name: "upstream", Domains: []string{"."}, Servers: c.Upstream}
	var err error
	if len(rest.Servers) == 0 {
		rest.Servers, err = machineServers(resolverFile, c.Address)
	}
	consul := resolver.Zone{Name: "consul", Domains: []string{dns.Fqdn(c.ConsulDomain)}, Servers: []string{c.ConsulAddress}}
	zones := []resolver.Zone{consul, rest}
	// Before settings are known, "" would be every name.
	if s.DNS.Domain != "" {
		zones = append([]resolver.Zone{cluster}, zones...)
	}
	return zones, err
}

// machineServers are those of a resolv.conf, without this agent's own address.
func machineServers(file string, own netip.Addr) (out []string, err error) {
	c, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("find this machine's name servers: %w", err)
	}
	for _, s := range c.Servers {
		if s != own.String() {
			out = append(out, net.JoinHostPort(s, c.Port))
		}
	}
	return out, nil
}
