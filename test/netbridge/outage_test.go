package netbridge

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
)

// outageEnv makes every outage of Consul last so long, such as 10m.
const outageEnv = "NETBRIDGE_OUTAGE"

func outage(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	long := os.Getenv(outageEnv)
	if long == "" {
		return short
	}
	d, err := time.ParseDuration(long)
	if err != nil {
		t.Fatalf("%s: %v", outageEnv, err)
	}
	return d
}

// TestOutages: Consul runs, and the agents do not have it all the same.
func TestOutages(t *testing.T) {
	b := newACLBed(t)
	walk(t, b.bed, b, []step[*aclBed]{
		{"packets dropped", unreachable},
		{"token deleted, then replaced", tokenDeleted},
		{"rights cut", rightsCut},
	})
}

// aclBed is a bed whose agents share a token.
type aclBed struct {
	*bed
	tokenFile string
	token     *api.ACLToken
	policy    *api.ACLPolicy
}

const fabricKeys = "netbridge/v1/" + fabricName + "/"

// allRights are deploy's, for agents of both kinds.
func allRights(t *testing.T) string {
	t.Helper()
	rules, err := os.ReadFile("../../deploy/consul/netbridge-agent.hcl")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(rules), "netbridge/v1/default/", fabricKeys) +
		fmt.Sprintf(`key_prefix %q { policy = "write" } key_prefix %q { policy = "write" }`, fabricKeys+"nodes/k8s/", fabricKeys+"seen/k8s/")
}

func newACLBed(t *testing.T) *aclBed {
	t.Helper()
	b := &aclBed{bed: bedIn(t, netlab.New(t, "underlay"), true), tokenFile: filepath.Join(t.TempDir(), "token")}
	policy, _, err := b.consul.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: "netbridge", Rules: allRights(t)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.policy = policy
	b.newToken()
	b.populate(b.withToken)
	return b
}

func (b *aclBed) withToken(config map[string]any) {
	config["consul"].(map[string]any)["tokenFile"] = b.tokenFile
}

// newToken writes a token of the agents' policy into their file.
func (b *aclBed) newToken() {
	b.t.Helper()
	var err error
	b.token, _, err = b.consul.Client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: b.policy.ID}}}, nil)
	if err == nil {
		err = os.WriteFile(b.tokenFile, []byte(b.token.SecretID+"\n"), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// allow gives the agents' policy other rules.
func (b *aclBed) allow(rules string) {
	b.t.Helper()
	changed := *b.policy
	changed.Rules = rules
	if _, _, err := b.consul.Client.ACL().PolicyUpdate(&changed, nil); err != nil {
		b.t.Fatal(err)
	}
}

// stir writes below the agents' prefix until each has had a list that is as it
// should be: a query that waits keeps the rights that it began with.
func (b *aclBed) stir(ok func(agent.Status) bool) {
	b.t.Helper()
	for _, h := range b.hosts {
		h.until("another list", func(st agent.Status) bool {
			value := fmt.Appendf(nil, `{"stirred":%d}`, time.Now().UnixNano())
			if _, err := b.consul.Client.KV().Put(&api.KVPair{Key: fabricKeys + "nodes/.keep", Value: value}, nil); err != nil {
				b.t.Fatal(err)
			}
			return ok(st)
		})
	}
}

// kernel is what the agents have set up for their peers, in an order of its own.
func (b *bed) kernel() map[string]string {
	b.t.Helper()
	out := map[string]string{}
	for _, h := range b.hosts {
		var words []string
		for _, line := range []string{"ip route show proto 76", "bridge fdb show dev nb0", "ip neigh show dev nb0", "nft list set ip netbridge peers"} {
			words = append(words, strings.Fields(h.Run(line))...)
		}
		slices.Sort(words)
		out[h.Name] = strings.Join(words, " ")
	}
	return out
}

// endures runs streams while begin takes Consul away, in a way that seen tells, and
// end brings it back: no packet is lost, nothing withdrawn, and pods are made.
func (b *bed) endures(t *testing.T, pods []*pod, begin func(), seen func(agent.Status) bool, end func()) {
	t.Helper()
	before := b.kernel()
	var took time.Duration
	lost, strange := b.meter(t, pods, func() {
		began := time.Now()
		begin()
		for _, h := range b.hosts {
			h.until("an outage", seen)
		}
		t.Logf("all agents know of it after %s", time.Since(began).Round(time.Millisecond))
		pod := false
		for over := began.Add(outage(t, 15*time.Second)); time.Now().Before(over) || !pod; time.Sleep(2 * time.Second) {
			for _, h := range b.hosts {
				if st, err := h.status(); err != nil || !seen(st) || len(st.Peers) != 2 || len(st.Drift) != 0 || st.Fenced != "" {
					t.Fatalf("%s during the outage: %+v %v", h.Name, st, err)
				}
			}
			for name, now := range b.kernel() {
				if now != before[name] {
					t.Fatalf("%s had\n%s\nand has\n%s", name, before[name], now)
				}
			}
			if !pod {
				b.newPod(t, pods)
				pod = true
			}
		}
		took = time.Since(began)
		end()
		for _, h := range b.hosts {
			h.settled()
		}
	})
	t.Logf("an outage of %s", took.Round(time.Second))
	if lost != 0 || strange != 0 {
		t.Errorf("%d packets lost, %d with a wrong source", lost, strange)
	}
	for name, now := range b.kernel() {
		if now != before[name] {
			t.Errorf("%s had\n%s\nand has after it\n%s", name, before[name], now)
		}
	}
}

// newPod makes one on the first host, which the others know, and calls from it.
func (b *bed) newPod(t *testing.T, pods []*pod) {
	t.Helper()
	p := pods[0].host.pod()
	for _, to := range pods[1:] {
		if seen, err := caller(p.NS, to.NS, to.ip, 10); err != nil || seen != p.ip {
			t.Errorf("a new pod, to %s: %s %v", to.host.Name, seen, err)
		}
	}
}

// Nothing is refused or closed: packets vanish, and calls hang.
func unreachable(t *testing.T, b *aclBed, pods []*pod) {
	rules := []string{"OUTPUT -p tcp --dport 8500 -j DROP", "INPUT -p tcp --sport 8500 -j DROP"}
	each := func(verb string) {
		for _, h := range b.hosts {
			for _, r := range rules {
				h.Run("iptables " + verb + " " + r)
			}
		}
	}
	b.endures(t, pods, func() { each("-A") }, func(st agent.Status) bool { return st.Consul != "" }, func() { each("-D") })
}

// A token that is gone is an agent without Consul. The next one is read at the
// next start, which costs no packet.
func tokenDeleted(t *testing.T, b *aclBed, pods []*pod) {
	b.endures(t, pods, func() {
		if _, err := b.consul.Client.ACL().TokenDelete(b.token.AccessorID, nil); err != nil {
			t.Fatal(err)
		}
	}, func(st agent.Status) bool { return strings.Contains(st.Consul, "ACL not found") }, func() {
		b.newToken()
		for _, h := range b.hosts {
			h.kill()
			h.start()
		}
	})
}

// Consul answers, and leaves out of its lists what the token may not read: the
// blocks, and all nodes but one.
func rightsCut(t *testing.T, b *aclBed, pods []*pod) {
	cut := func(st agent.Status) bool {
		return st.Consul == "" && strings.Contains(st.Incomplete, "may not read all")
	}
	b.endures(t, pods, func() {
		b.allow(fmt.Sprintf(`key %q { policy = "read" } key %q { policy = "read" } key %q { policy = "read" }`,
			fabricKeys+"config", fabricKeys+"nodes/.keep", fabricKeys+"nodes/nomad/nom1"))
		b.stir(cut)
	}, cut, func() {
		b.allow(allRights(t))
		b.stir(func(st agent.Status) bool { return st.Incomplete == "" })
	})
}
