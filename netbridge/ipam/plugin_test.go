package ipam_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types "github.com/containernetworking/cni/pkg/types/100"

	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/bridge"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/cniconf"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
)

const cniDir = "/usr/lib/cni"

// TestMain makes this binary the plugin when it is called by its name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == ipam.Plugin {
		ipam.Main("test")
		return
	}
	os.Exit(m.Run())
}

// plugin installs this binary as the plugin.
func plugin(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, ipam.Plugin)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// call runs the plugin as the bridge plugin does.
func call(t *testing.T, dir, data, command, container string) *exec.Cmd {
	t.Helper()
	config := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"netbridge","type":"bridge","ipam":{"type":%q,"dataDir":%q,"blocks":["10.77.1.0/25"]}}`, ipam.Plugin, data)
	cmd := exec.Command(filepath.Join(dir, ipam.Plugin))
	cmd.Stdin = strings.NewReader(config)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+container, "CNI_IFNAME=eth0", "CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=true", "CNI_PATH="+dir)
	return cmd
}

func result(t *testing.T, out []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var r types.Result
	if err := json.Unmarshal(out, &r); err != nil || len(r.IPs) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	return r.IPs[0].Address.String() + " by " + r.IPs[0].Gateway.String()
}

func TestPluginByTheProtocol(t *testing.T) {
	dir, data := plugin(t), t.TempDir()
	run := func(command, container string) ([]byte, error) {
		return call(t, dir, data, command, container).Output()
	}
	out, err := run("ADD", "one")
	if r := result(t, out, err); r != "10.77.1.2/25 by 10.77.1.1" {
		t.Error(r)
	}
	out, err = run("ADD", "two")
	if r := result(t, out, err); r != "10.77.1.3/25 by 10.77.1.1" {
		t.Error(r)
	}
	out, err = run("ADD", "one")
	if r := result(t, out, err); r != "10.77.1.2/25 by 10.77.1.1" {
		t.Error("again", r)
	}
	if out, err := run("CHECK", "one"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for range 2 { // a DEL may come twice
		if out, err := run("DEL", "one"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	if out, err := run("CHECK", "one"); err == nil || !strings.Contains(string(out), "has no address") {
		t.Errorf("%v: %s", err, out)
	}
}

// A plugin that is killed at any instant leaves the address given, to the one who
// asks again, or not given.
func TestKilledInMidAdd(t *testing.T) {
	dir, data := plugin(t), t.TempDir()
	given := map[string]string{}
	for i := range 60 {
		name := fmt.Sprint("alloc-", i)
		cmd := call(t, dir, data, "ADD", name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 500 * time.Microsecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out, err := call(t, dir, data, "ADD", name).Output()
		r := result(t, out, err)
		if other, taken := given[r]; taken {
			t.Errorf("%s has %s, which is %s's", name, r, other)
		}
		given[r] = name
	}
	s, err := ipam.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := s.Entries()
	if err != nil || len(entries) != 60 {
		t.Errorf("%d addresses for 60: %v", len(entries), err)
	}
	for i := range 60 {
		if out, err := call(t, dir, data, "DEL", fmt.Sprint("alloc-", i)).Output(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	if entries, err = s.Entries(); err != nil || len(entries) != 0 {
		t.Errorf("%v %v", entries, err)
	}
}

// The whole network as Nomad sets it up: loopback, the standard bridge plugin, our
// addresses. One at a time, since Nomad has one lock for all set-ups. Beside it
// the same with the standard host-local.
func TestAddTime(t *testing.T) {
	netlab.Root(t, filepath.Join(cniDir, "bridge"))
	dir, data := plugin(t), t.TempDir()
	conf, err := cniconf.Render(cniconf.Config{Bridge: "nbr0", MTU: 1450, Blocks: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/25")}, DataDir: data})
	if err != nil {
		t.Fatal(err)
	}
	control := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"control","plugins":[{"type":"loopback"},{"type":"bridge","bridge":"nbr1","isGateway":true,"hairpinMode":true,
"mtu":1450,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.2.0/25"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, t.TempDir())
	host := netlab.New(t, "host")
	host.Must(func() error {
		_, err := bridge.Ensure(bridge.Config{Name: "nbr0", MTU: 1450, MAC: net.HardwareAddr{2, 1, 2, 3, 4, 5}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.77.1.0/25")}})
		return err
	})
	cni := libcni.NewCNIConfigWithCacheDir([]string{dir, cniDir}, t.TempDir(), nil)
	measureAdd(t, "host-local", host, cni, []byte(control), 30)
	measureAdd(t, "netbridge-ipam", host, cni, conf, 30)
	s, err := ipam.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := s.Entries(); err != nil || len(entries) != 0 {
		t.Errorf("%v %v", entries, err)
	}
}

// Pods that come before the agent, as after a boot, find a bridge that the bridge
// plugin makes. Nomad's CHECK asks for the address that it had then.
func TestPodsBeforeTheAgent(t *testing.T) {
	netlab.Root(t, "ip", filepath.Join(cniDir, "bridge"))
	dir, mac, blocks := plugin(t), net.HardwareAddr{2, 1, 2, 3, 4, 5}, []netip.Prefix{netip.MustParsePrefix("10.77.1.0/25")}
	conf, err := cniconf.Render(cniconf.Config{Bridge: "nbr0", MAC: mac, MTU: 1450, Blocks: blocks, DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		t.Fatal(err)
	}
	host := netlab.New(t, "host")
	cni := libcni.NewCNIConfigWithCacheDir([]string{dir, cniDir}, t.TempDir(), nil)
	var pods []*libcni.RuntimeConf
	for i := range 5 {
		pods = append(pods, &libcni.RuntimeConf{ContainerID: fmt.Sprint("pod", i), NetNS: netlab.New(t, fmt.Sprint("pod", i)).Path(), IfName: "eth0"})
		host.Must(func() error {
			_, err := cni.AddNetworkList(t.Context(), list, pods[i])
			return err
		})
	}
	host.Must(func() error {
		_, err := bridge.Ensure(bridge.Config{Name: "nbr0", MTU: 1450, MAC: mac, Blocks: blocks})
		return err
	})
	for _, rt := range pods {
		host.Must(func() error { return cni.CheckNetworkList(t.Context(), list, rt) })
	}
}

func measureAdd(t *testing.T, name string, host *netlab.NS, cni *libcni.CNIConfig, conf []byte, n int) {
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		t.Fatal(err)
	}
	var adds, dels []time.Duration
	lost := 0
	for i := range n {
		pod := netlab.New(t, fmt.Sprint("pod", i))
		rt := &libcni.RuntimeConf{ContainerID: fmt.Sprint(name, i), NetNS: pod.Path(), IfName: "eth0"}
		var server net.Listener
		pod.Must(func() (err error) {
			server, err = net.Listen("tcp4", ":8080")
			return err
		})
		host.Must(func() error {
			began := time.Now()
			res, err := cni.AddNetworkList(context.Background(), list, rt)
			if err != nil {
				return err
			}
			adds = append(adds, time.Since(began))
			r, err := types.GetResult(res)
			if err != nil {
				return err
			}
			// Reachable the moment ADD returns.
			if c, err := net.DialTimeout("tcp4", r.IPs[0].Address.IP.String()+":8080", time.Second/2); err != nil {
				lost++
			} else {
				_ = c.Close()
			}
			return cni.CheckNetworkList(context.Background(), list, rt)
		})
		host.Must(func() error {
			began := time.Now()
			err := cni.DelNetworkList(context.Background(), list, rt)
			dels = append(dels, time.Since(began))
			return err
		})
		_ = server.Close()
	}
	slices.Sort(adds)
	slices.Sort(dels)
	t.Logf("%s: ADD p50 %s, max %s; DEL p50 %s, max %s; not reachable at once %d of %d", name, adds[n/2], adds[n-1], dels[n/2], dels[n-1], lost, n)
	if lost > 0 {
		t.Errorf("%s: %d of %d pods were not reachable when ADD had returned", name, lost, n)
	}
}
