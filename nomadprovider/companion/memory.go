package companion

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// balloon is the device by which a guest tells of its memory; qemu asks the guest
// each time so many seconds have passed (hw/virtio/virtio-balloon.c, guest-stats).
const (
	balloon         = "/machine/peripheral/balloon"
	balloonInterval = 5
	// balloonPatience is how long the first answer may take, which is asked for when
	// somebody first wants to know.
	balloonPatience = 2 * time.Second
)

// Memory is a guest's, in bytes, as its kernel tells it: MemTotal and MemAvailable.
type Memory struct {
	Total     uint64 `json:"total"`
	Available uint64 `json:"available"`
}

// GuestMemory asks the VM whose human monitor listens on the Unix socket for its
// guest's memory. The error says that the guest, which needs a driver for the
// balloon device, has not told.
func GuestMemory(ctx context.Context, socket string) (Memory, error) {
	conn, err := dial(ctx, socket)
	if err != nil {
		return Memory{}, fmt.Errorf("connect to the VM's monitor: %w", err)
	}
	defer conn.Close()
	unblock := context.AfterFunc(ctx, func() { conn.Close() })
	defer unblock()
	if err := awaitPrompt(conn); err != nil {
		return Memory{}, err
	}
	if _, err := say(conn, fmt.Sprintf("qom-set %s guest-stats-polling-interval %d", balloon, balloonInterval)); err != nil {
		return Memory{}, err
	}
	for end := time.Now().Add(balloonPatience); ; {
		answer, err := say(conn, "qom-get "+balloon+" guest-stats")
		if err != nil {
			return Memory{}, err
		}
		m, told, err := readBalloon(answer)
		if err != nil || told {
			return m, err
		}
		if time.Now().After(end) {
			return Memory{}, errors.New("the guest tells nothing of its memory")
		}
		// qemu tells nobody when the guest has answered.
		select {
		case <-ctx.Done():
			return Memory{}, ctx.Err()
		case <-time.After(balloonPatience / 10):
		}
	}
}

// say gives the monitor a line and returns what it writes until its next prompt, its
// echo of the line included.
func say(conn net.Conn, line string) ([]byte, error) {
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return nil, fmt.Errorf("speak to the VM's monitor: %w", err)
	}
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.HasSuffix(seen, prompt) {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("listen to the VM's monitor: %w", err)
		}
		seen = append(seen, buf[:n]...)
	}
	return seen, nil
}

// readBalloon reads the guest's statistics, which follow the echo. What the guest
// does not tell is the greatest number there is.
func readBalloon(answer []byte) (m Memory, told bool, err error) {
	at := bytes.Index(answer, []byte("\r\n{"))
	if at < 0 {
		return m, false, errors.New("the VM has no balloon device")
	}
	var stats struct {
		Stats struct {
			Total     uint64 `json:"stat-total-memory"`
			Available uint64 `json:"stat-available-memory"`
		} `json:"stats"`
		LastUpdate int64 `json:"last-update"`
	}
	if err := json.Unmarshal(bytes.TrimSuffix(answer[at:], prompt), &stats); err != nil {
		return m, false, fmt.Errorf("read the VM's statistics: %w", err)
	}
	m = Memory{stats.Stats.Total, stats.Stats.Available}
	return m, stats.LastUpdate != 0 && m.Total != math.MaxUint64 && m.Available <= m.Total, nil
}
