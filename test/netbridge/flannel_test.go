package netbridge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
)

// A cluster of two nodes whose CNI is the real flannel, with its vxlan and its
// masquerading, in two networks; and a Nomad client. The cluster's nodes go on using
// flannel among themselves, and everybody keeps his address with everybody.
func TestFlannel(t *testing.T) {
	needs(t)
	netlab.Root(t, "etcd", "flanneld")
	b := emptyBed(t)
	startEtcd(t, b)
	nom1, k8s1, k8s2 := b.host("nomad/nom1", 1, 11), b.host("k8s/k8s1", 1, 21), b.host("k8s/k8s2", 2, 22)
	nom1.Run("iptables -P FORWARD DROP")
	nom1.start()
	var pods []*pod
	for _, h := range []*host{k8s1, k8s2} {
		h.realFlannel(t)
		h.start()
	}
	for _, h := range b.hosts {
		h.until("all peers", func(st agent.Status) bool {
			return len(st.Peers) == 2 && st.Incomplete == "" && len(st.Drift) == 0 && len(st.Problems) == 0
		})
		pods = append(pods, h.pod())
	}
	all := func(when string) {
		t.Helper()
		for _, from := range pods {
			for _, to := range pods {
				if from == to {
					continue
				}
				var seen string
				var err error
				// flannel tells its nodes of each other a moment after they are there.
				for limit := time.Now().Add(15 * time.Second); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
					if seen, err = caller(from.NS, to.NS, to.ip, 65536); err == nil && seen == from.ip {
						break
					}
				}
				if err != nil || seen != from.ip {
					t.Errorf("%s: %s (%s) to %s is seen as %s: %v", when, from.host.Name, from.ip, to.host.Name, seen, err)
				}
			}
		}
	}
	all("flannel and netbridge")
	for _, c := range []struct {
		from *host
		to   *pod
		by   string
	}{{k8s1, pods[2], "flannel.1"}, {k8s2, pods[1], "flannel.1"}, {k8s1, pods[0], "nb0"}, {nom1, pods[1], "nb0"}} {
		if out := c.from.Run("ip route get " + c.to.ip); !strings.Contains(out, "dev "+c.by+" ") {
			t.Errorf("from %s to the pod on %s not by %s: %s", c.from.Name, c.to.host.Name, c.by, out)
		}
	}
	// Outside, the pods of both are seen under their machines' addresses, as before.
	for _, p := range pods {
		if seen, err := caller(p.NS, b.underlay, "192.168.101.1", 10); err != nil || seen != p.host.ep.String() {
			t.Errorf("a call to the outside from %s is seen as %s: %v", p.host.Name, seen, err)
		}
	}
	// It writes its rules again when it starts again, as in an upgrade.
	for _, h := range []*host{k8s1, k8s2} {
		h.realFlannel(t)
	}
	all("flannel started again")
	for _, h := range b.hosts {
		h.settled()
	}
}

// startEtcd has the network that flannel divides.
func startEtcd(t *testing.T, b *bed) {
	t.Helper()
	const url = "http://192.168.101.1:2379"
	cmd := exec.Command("etcd", "--data-dir="+t.TempDir(), "--listen-client-urls="+url, "--advertise-client-urls="+url,
		"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=error")
	if err := b.underlay.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	network := map[string]any{"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": map[string]any{"Type": "vxlan"}}
	value, _ := json.Marshal(network)
	put, _ := json.Marshal(map[string]string{
		"key":   base64.StdEncoding.EncodeToString([]byte("/coreos.com/network/config")),
		"value": base64.StdEncoding.EncodeToString(value),
	})
	client := &http.Client{Transport: &http.Transport{DialContext: b.underlay.Dial, DisableKeepAlives: true}}
	eventually(t, "etcd", 20*time.Second, func() bool {
		resp, err := client.Post(url+"/v3/kv/put", "application/json", bytes.NewReader(put))
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// realFlannel starts flanneld on the host, or starts it again, and has the host's
// pods and its agent use the range that it was given.
func (h *host) realFlannel(t *testing.T) {
	t.Helper()
	file, log := filepath.Join(h.dir, "subnet.env"), filepath.Join(h.dir, "flanneld.log")
	if h.flanneld != nil {
		_ = h.flanneld.Process.Kill()
		_ = h.flanneld.Wait()
	}
	_ = os.Remove(file)
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	h.flanneld = exec.Command("flanneld", "-etcd-endpoints=http://192.168.101.1:2379", "-iface=eth0", "-ip-masq", "-subnet-file="+file)
	h.flanneld.Stdout, h.flanneld.Stderr = out, out
	err = h.Start(h.flanneld)
	_ = out.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.flanneld.Process.Kill()
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("flanneld of %s:\n%s", h.Name, text)
		}
	})
	env := map[string]string{}
	eventually(t, "flannel's range for "+h.Name, 30*time.Second, func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			env[key] = value
		}
		return env["FLANNEL_SUBNET"] != "" && env["FLANNEL_MTU"] != ""
	})
	subnet := strings.Replace(env["FLANNEL_SUBNET"], ".1/", ".0/", 1)
	// What flannel's CNI plugin makes of it (flannel-io/cni-plugin, flannel_linux.go).
	h.cni = fmt.Sprintf(`{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"mtu":%s,
"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0"}]}}]}`,
		env["FLANNEL_MTU"], filepath.Join(h.dir, "host-local"), subnet)
	h.configure(t, func(c map[string]any) { c["node"].(map[string]any)["podCIDRs"] = []string{subnet} })
}

// configure changes the agent's file.
func (h *host) configure(t *testing.T, change func(map[string]any)) {
	t.Helper()
	c := map[string]any{}
	data, err := os.ReadFile(h.config)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(c)
	data, _ = json.Marshal(c)
	if err := os.WriteFile(h.config, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// clusterNetwork is what pods of the cluster's nodes join: a plain bridge, if no CNI
// has written another.
func (h *host) clusterNetwork() (*libcni.NetworkConfigList, error) {
	if h.cni == "" {
		h.cni = fmt.Sprintf(`{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,
"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, filepath.Join(h.dir, "host-local"))
	}
	return libcni.ConfListFromBytes([]byte(h.cni))
}
