package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

const (
	// mostPaths is how many peers are asked, answerTime how long each has.
	mostPaths  = 20
	answerTime = 2 * time.Second
	// closedPort is tcpmux, which nobody serves: a refusal is an answer.
	closedPort = 1
)

// path is what came of calling a peer through the overlay.
type path struct {
	id   fabric.ID
	node fabric.Node
	took time.Duration
	err  error
}

// paths are those that were tried, of so many peers.
type paths struct {
	tried []path
	all   int
}

// ask calls peers at their overlay addresses, all at once.
func ask(ctx context.Context, peers map[fabric.ID]fabric.Node) paths {
	ids := slices.Sorted(maps.Keys(peers))
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	ids = ids[:min(mostPaths, len(ids))]
	slices.Sort(ids)
	out := paths{make([]path, len(ids)), len(peers)}
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			began := time.Now()
			err := call(ctx, peers[id].Host)
			out.tried[i] = path{id, peers[id], time.Since(began), err}
		})
	}
	wg.Wait()
	return out
}

// call is answered when either is: a firewall of the peer's may let one of them in.
func call(ctx context.Context, host netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	results := make(chan error, 2)
	go func() { results <- echo(ctx, host) }()
	go func() { results <- refused(ctx, host) }()
	first := <-results
	if first == nil {
		return nil
	}
	second := <-results
	if second == nil {
		return nil
	}
	return fmt.Errorf("%w; %w", first, second)
}

// refused is a connection to where nobody listens.
func refused(ctx context.Context, host netip.Addr) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", netip.AddrPortFrom(host, closedPort).String())
	if err == nil {
		return c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return err
}

// echo is one ICMP echo there and back.
func echo(ctx context.Context, host netip.Addr) error {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return err
		}
	}
	sign := []byte(uuid.NewString())
	out, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: sign}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(out, &net.IPAddr{IP: host.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buf) // others' answers come here, too
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(ipv4.ICMPTypeEcho.Protocol(), buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && bytes.Equal(e.Data, sign) {
			return nil
		}
	}
}

func judgePaths(p paths, s fabric.Settings) []report.Check {
	var r report.Report
	answered, longest := 0, time.Duration(0)
	for _, x := range p.tried {
		if x.err != nil {
			r.Add(report.Check{Where: atPeers, What: "path to " + string(x.id), Result: report.Fail,
				Found:  fmt.Sprintf("no answer from %s, which is behind %s: %v", x.node.Host, x.node.Endpoint, x.err),
				Breaks: "pods here and there do not reach each other",
				Remedy: fmt.Sprintf("here and there: iptables -I INPUT -p udp --dport %d -j ACCEPT, and what is between them (security groups), both ways; "+
					"there: netbridge status must have this node among its peers, and see its packets come from its endpoint; its firewall must let in ICMP or TCP from %s", s.Port, s.HostCIDR)})
			continue
		}
		answered++
		longest = max(longest, x.took)
	}
	if answered > 0 {
		r.OK(atPeers, "paths", fmt.Sprintf("%d of %d peers answer, the last after %s", answered, p.all, longest.Round(100*time.Microsecond)))
	}
	return r.Checks
}
