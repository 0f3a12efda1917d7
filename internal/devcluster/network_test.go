package devcluster

import (
	"net"
	"slices"
	"strings"
	"testing"
)

const savedNAT = `*nat
:POSTROUTING ACCEPT [0:0]
:CNI-DN-aaaa - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-aaaa - [0:0]
:CNI-bbbb - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -s 172.27.0.2/32 -m comment --comment "name: \"nomad\" id: \"one\"" -j CNI-aaaa
-A POSTROUTING -s 172.26.64.9/32 -m comment --comment "name: \"nomad\" id: \"other\"" -j CNI-bbbb
-A CNI-DN-aaaa -p tcp -m tcp --dport 20289 -j DNAT --to-destination 172.27.0.2:8080
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"nomad\" id: \"one\"" -m multiport --dports 20289 -j CNI-DN-aaaa
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-aaaa -d 172.27.0.0/22 -m comment --comment "name: \"nomad\" id: \"one\"" -j ACCEPT
-A CNI-bbbb -d 172.26.64.0/20 -m comment --comment "name: \"nomad\" id: \"other\"" -j ACCEPT
COMMIT
`

func TestObsoleteRules(t *testing.T) {
	_, subnet, err := net.ParseCIDR("172.27.0.0/22")
	if err != nil {
		t.Fatal(err)
	}
	lines := func(alone bool) []string {
		var out []string
		for _, args := range obsoleteRules(savedNAT, subnet, alone) {
			out = append(out, strings.Join(args, " "))
		}
		return out
	}
	ours := lines(false)
	for _, want := range []string{
		`-D POSTROUTING -s 172.27.0.2/32 -m comment --comment name: "nomad" id: "one" -j CNI-aaaa`,
		`-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment dnat name: "nomad" id: "one" -m multiport --dports 20289 -j CNI-DN-aaaa`,
		"-F CNI-aaaa", "-X CNI-aaaa", "-F CNI-DN-aaaa", "-X CNI-DN-aaaa",
	} {
		if !slices.Contains(ours, want) {
			t.Errorf("%q is missing in:\n%s", want, strings.Join(ours, "\n"))
		}
	}
	if slices.Index(ours, "-X CNI-aaaa") < slices.Index(ours, "-F CNI-DN-aaaa") {
		t.Error("a chain is dropped before all are empty")
	}
	for _, line := range ours {
		if strings.Contains(line, "bbbb") || strings.Contains(line, "MASQ") {
			t.Errorf("touches what is not ours: %s", line)
		}
	}
	// The other pod has no rule in the shared chains, so they go when asked.
	if all := lines(true); !slices.Contains(all, "-X CNI-HOSTPORT-MASQ") || slices.Contains(all, "-X CNI-bbbb") {
		t.Errorf("alone:\n%s", strings.Join(all, "\n"))
	}
}
