package netbridge

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream is numbered UDP packets from one pod to another, one a millisecond.
type stream struct {
	name    string
	out     net.Conn
	in      net.PacketConn
	from    string
	stop    chan struct{}
	done    sync.WaitGroup
	sent    uint64
	failed  int
	mu      sync.Mutex
	got     map[uint64]time.Duration
	strange int
	began   time.Time
}

func newStream(t *testing.T, from, to *pod) *stream {
	t.Helper()
	s := &stream{name: from.host.Name + " -> " + to.host.Name, from: from.ip, stop: make(chan struct{}), got: map[uint64]time.Duration{}, began: time.Now()}
	to.Must(func() (err error) {
		s.in, err = net.ListenPacket("udp4", to.ip+":0")
		return err
	})
	from.Must(func() (err error) {
		s.out, err = net.Dial("udp4", s.in.LocalAddr().String())
		return err
	})
	// A busy machine must not lose in this process what the network has brought.
	raw, err := s.in.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) })
	}
	if err != nil {
		t.Fatal(err)
	}
	// The stream is a connection that runs: its first packet has arrived, so that
	// its entries in conntrack are made.
	if _, err := s.out.Write(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	_ = s.in.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := s.in.ReadFrom(make([]byte, 8)); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	_ = s.in.SetReadDeadline(time.Time{})
	s.began = time.Now()
	s.done.Go(s.send)
	go s.receive()
	return s
}

func (s *stream) send() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var buf [8]byte
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		// A busy machine skips ticks: what is missed is made up for.
		for due := uint64(time.Since(s.began) / time.Millisecond); s.sent < due; s.sent++ {
			binary.BigEndian.PutUint64(buf[:], s.sent)
			if _, err := s.out.Write(buf[:]); err != nil {
				s.failed++
			}
		}
	}
}

func (s *stream) receive() {
	buf := make([]byte, 64)
	for {
		_, from, err := s.in.ReadFrom(buf)
		if err != nil {
			return
		}
		n := binary.BigEndian.Uint64(buf)
		s.mu.Lock()
		s.got[n] = time.Since(s.began)
		if from.(*net.UDPAddr).IP.String() != s.from {
			s.strange++
		}
		s.mu.Unlock()
	}
}

func (s *stream) whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.got)) == s.sent
}

// end waits for what is under way and says how many were lost.
func (s *stream) end() (sent, lost uint64, text string) {
	close(s.stop)
	s.done.Wait()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !s.whole(); {
		time.Sleep(10 * time.Millisecond)
	}
	_ = s.out.Close()
	_ = s.in.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	var gap, longest, first uint64
	for n := range s.sent {
		if _, ok := s.got[n]; ok {
			gap = 0
			continue
		}
		if lost == 0 {
			first = n
		}
		lost++
		gap++
		longest = max(longest, gap)
	}
	text = fmt.Sprintf("%s: %d of %d lost, %d in a row, %d with a wrong source, %d not sent", s.name, lost, s.sent, longest, s.strange, s.failed)
	if lost > 0 {
		text += fmt.Sprintf(", the first after %d ms", first)
	}
	return s.sent, lost, text
}

// meter runs streams between pods, both ways, while f does its worst.
func (b *bed) meter(t *testing.T, pods []*pod, f func()) (lost, strange uint64) {
	t.Helper()
	var streams []*stream
	for i := range pods {
		for j := range pods {
			if i != j {
				streams = append(streams, newStream(t, pods[i], pods[j]))
			}
		}
	}
	f()
	for _, s := range streams {
		_, l, text := s.end()
		t.Log(text)
		lost += l
		strange += uint64(s.strange)
	}
	return lost, strange
}
