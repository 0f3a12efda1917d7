package netbridge

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// TestWireGuard is the other backend, on the machines of the bed, each with a
// process that carries its device.
func TestWireGuard(t *testing.T) {
	b := encryptedBed(t)
	walk(t, b, b, []step[*bed]{
		{"everybody reaches everybody", reach},
		{"large packets", largeEncrypted},
		{"nobody on the way can read", unreadable},
		{"agents killed", agentsKilled},
		{"the device's process killed", carrierKilled},
		{"a forged key", forged},
		{"a node set up anew", anew},
		{"a machine with WireGuard leaves", leaves},
	})
}

// encryptedBed is newBed with WireGuard.
func encryptedBed(t *testing.T) *bed {
	t.Helper()
	b := emptyBed(t)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	b.settings.Backend = fabric.BackendWireGuard
	b.set()
	for i, id := range []fabric.ID{"nomad/nom1", "nomad/nom2", "k8s/k8s1"} {
		// The sockets of all devices are in one directory of the machine.
		b.host(id, 1+i%2, 11+i, func(c map[string]any) { c["device"] = fmt.Sprintf("nb%dx%d", os.Getpid(), i) })
	}
	b.hosts[0].Run("iptables -P FORWARD DROP")
	b.hosts[2].flannel()
	b.hosts[0].start()
	st := b.hosts[0].until("a word on what is missing", func(st agent.Status) bool { return st.Problems["overlay"] != "" })
	if text := st.Problems["overlay"]; strings.Contains(text, "no WireGuard") && !strings.Contains(text, "run netbridge wireguard --device "+b.hosts[0].device) {
		t.Error(text)
	}
	for _, h := range b.hosts {
		h.carry()
	}
	for _, h := range b.hosts[1:] {
		h.start()
	}
	for _, h := range b.hosts {
		h.until("all peers", func(st agent.Status) bool { return len(st.Peers) == 2 && st.Incomplete == "" && len(st.Drift) == 0 })
	}
	return b
}

// carry starts the process that carries the host's device.
func (h *host) carry() {
	h.bed.t.Helper()
	h.carrier = exec.Command(program, "wireguard", "--device", h.device)
	h.carrier.Stdout, h.carrier.Stderr = h.log, h.log
	if err := h.Start(h.carrier); err != nil {
		h.bed.t.Fatal(err)
	}
}

// drop is a SIGKILL of it, which leaves its socket.
func (h *host) drop() {
	if h.carrier != nil {
		_ = h.carrier.Process.Kill()
		_ = h.carrier.Wait() // killed
		h.carrier = nil
	}
}

func (h *host) carrierSocket() string { return "/var/run/wireguard/" + h.device + ".sock" }

// largeEncrypted: what fits passes whole, what does not is told. 64 KiB by TCP is
// what reach has sent to everybody.
func largeEncrypted(t *testing.T, _ *bed, pods []*pod) {
	const headers = 28
	for _, to := range pods[1:] {
		if err := dgram(pods[0], to, 1440-headers); err != nil {
			t.Errorf("1440 bytes: %v", err)
		}
		if err := dgram(pods[0], to, 1441-headers); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("1441 bytes: %v", err)
		}
	}
}

// marker is what somebody on the way looks for.
var marker = []byte("a secret that everybody knows")

// overheard is what passes the underlay's port of the first host while its pod
// sends the marker to another's: frames of the overlay, and those with the marker.
func overheard(t *testing.T, b *bed, pods []*pod) (frames, marked int) {
	t.Helper()
	const packets = 20
	var fd int
	b.underlay.Must(func() (err error) {
		dev, err := net.InterfaceByName("p11")
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(all)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})
	})
	defer unix.Close(fd)
	var in net.PacketConn
	pods[1].Must(func() (err error) { in, err = net.ListenPacket("udp4", pods[1].ip+":0"); return err })
	defer in.Close()
	out, err := pods[0].Dial(t.Context(), "udp4", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	buf := make([]byte, 1<<16)
	for range packets {
		if _, err := out.Write(marker); err != nil {
			t.Fatal(err)
		}
		_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := in.ReadFrom(buf); err != nil || !bytes.Equal(buf[:n], marker) {
			t.Fatalf("the other pod got %q: %v", buf[:n], err)
		}
	}
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return frames, marked
		}
		// Ethernet, IPv4 without options, UDP.
		if f := buf[:n]; len(f) > 42 && f[23] == unix.IPPROTO_UDP && int(binary.BigEndian.Uint16(f[36:])) == b.settings.Port {
			frames++
			if bytes.Contains(f, marker) {
				marked++
			}
		}
	}
}

func readable(t *testing.T, b *bed, pods []*pod) {
	if frames, marked := overheard(t, b, pods); marked < 20 {
		t.Errorf("of %d frames of the overlay %d show what is in them: does this test see anything?", frames, marked)
	}
}

func unreadable(t *testing.T, b *bed, pods []*pod) {
	if frames, marked := overheard(t, b, pods); marked > 0 || frames < 20 {
		t.Errorf("of %d frames of the overlay %d show what is in them", frames, marked)
	}
}

// carrierKilled: device, keys and sessions are gone, and come back by themselves
// when the process does, in both directions.
func carrierKilled(t *testing.T, b *bed, pods []*pod) {
	h := pods[1].host
	var streams []*stream
	for i := range pods {
		for j := range pods {
			if i != j {
				streams = append(streams, newStream(t, pods[i], pods[j]))
			}
		}
	}
	h.drop()
	h.until("a word on what is missing", func(st agent.Status) bool { return st.Problems["overlay"] != "" })
	again := time.Now()
	h.carry()
	h.settled()
	settled := time.Since(again)
	time.Sleep(3 * time.Second) // of undisturbed traffic
	var longest time.Duration
	for _, s := range streams {
		_, lost, text := s.end()
		t.Log(text)
		if !strings.Contains(s.name, h.Name) {
			if lost > 0 {
				t.Errorf("between other hosts: %s", text)
			}
			continue
		}
		if lost == 0 {
			t.Errorf("%s: the device was there all the time", s.name)
		}
		longest = max(longest, s.lastLost().Sub(again))
	}
	t.Logf("the process is there again: all packets arrive %s later, the agent sees no difference %s later", longest.Round(time.Millisecond), settled.Round(time.Millisecond))
	if longest > 2*time.Second {
		t.Errorf("packets are lost for %s after the process is there again", longest)
	}
}

// lastLost is when the last packet was sent that has not arrived.
func (s *stream) lastLost() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := s.sent; n > 0; n-- {
		if _, ok := s.got[n-1]; !ok {
			return s.began.Add(time.Duration(n-1) * time.Millisecond)
		}
	}
	return s.began
}

func (b *bed) key(h *host) string { return "netbridge/v1/" + fabricName + "/nodes/" + string(h.id) }

// forged: whoever writes a key of their own into another's record gets nothing of
// what is sent to it.
func forged(t *testing.T, b *bed, pods []*pod) {
	h, kv := pods[1].host, b.consul.Client.KV()
	pair, _, err := kv.Get(b.key(h), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n fabric.Node
	if err := json.Unmarshal(pair.Value, &n); err != nil {
		t.Fatal(err)
	}
	right := n.WG
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	n.WG, n.Endpoint = private.PublicKey().String(), pods[2].host.ep
	data, _ := json.Marshal(n)
	lost, _ := b.meter(t, pods, func() {
		if _, err := kv.Put(&api.KVPair{Key: b.key(h), Value: data}, nil); err != nil {
			t.Fatal(err)
		}
		for _, o := range []*host{pods[0].host, pods[2].host} {
			st := o.until("a refusal", func(st agent.Status) bool { return st.Refused[h.id] != "" })
			if text := st.Refused[h.id]; !strings.Contains(text, "key has changed") || !strings.Contains(text, "delete nodes/"+string(h.id)) {
				t.Error(text)
			}
			if st.Peers[h.id].WG != right || st.Peers[h.id].Endpoint != h.ep {
				t.Errorf("%s follows %+v", o.id, st.Peers[h.id])
			}
		}
	})
	if lost > 0 {
		t.Errorf("%d packets lost", lost)
	}
	b.renew(t, h)
}

// renew does what the refusal says.
func (b *bed) renew(t *testing.T, h *host) {
	t.Helper()
	began := time.Now()
	if _, err := b.consul.Client.KV().Delete(b.key(h), nil); err != nil {
		t.Fatal(err)
	}
	own, err := h.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range b.hosts {
		o.until("its key", func(st agent.Status) bool {
			return (o == h || st.Peers[h.id].WG == own.Own.WG) && len(st.Refused) == 0 && st.Incomplete == "" && len(st.Drift) == 0
		})
	}
	t.Logf("followed by all %s after the record was deleted", time.Since(began).Round(time.Millisecond))
}

// anew: a node that has lost its key is followed when somebody says so.
func anew(t *testing.T, b *bed, pods []*pod) {
	h := pods[1].host
	before, err := h.status()
	if err != nil {
		t.Fatal(err)
	}
	h.kill()
	h.drop()
	if err := os.Remove(filepath.Join(h.dir, "state", "wireguard.key")); err != nil {
		t.Fatal(err)
	}
	h.carry()
	h.start()
	for _, o := range []*host{pods[0].host, pods[2].host} {
		o.until("a refusal", func(st agent.Status) bool { return st.Refused[h.id] != "" })
	}
	if seen, err := caller(pods[0].NS, pods[1].NS, pods[1].ip, 10); err == nil {
		t.Errorf("it is reached all the same, by %s", seen)
	}
	b.renew(t, h)
	if now, err := h.status(); err != nil || now.Own.WG == before.Own.WG {
		t.Error("the key is the former one", err)
	}
	for _, p := range []*pod{pods[0], pods[2]} {
		if seen, err := caller(p.NS, pods[1].NS, pods[1].ip, 65536); err != nil || seen != p.ip {
			t.Errorf("from %s: %s %v", p.host.Name, seen, err)
		}
	}
}

// leaves: what carries the device ends with it.
func leaves(t *testing.T, _ *bed, pods []*pod) {
	h := pods[2].host
	h.kill()
	out, err := h.Try(program, "remove", "--config", h.config)
	if err != nil || !strings.Contains(out, "removed device "+h.device) {
		t.Errorf("%s %v", out, err)
	}
	if links := h.Run("ip -br link show"); strings.Contains(links, h.device) {
		t.Error(links)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.carrier.Wait() }()
	select {
	case <-ended:
		h.carrier = nil
	case <-time.After(10 * time.Second):
		t.Error("the process that carried the device goes on")
	}
}
