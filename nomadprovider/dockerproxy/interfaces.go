package dockerproxy

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Interface is what a network interface has carried since it was made.
type Interface struct {
	Name string  `json:"name"`
	Rx   Traffic `json:"rx"`
	Tx   Traffic `json:"tx"`
}

// Traffic is one direction.
type Traffic struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	Errors  uint64 `json:"errors"`
	Dropped uint64 `json:"dropped"`
}

// interfacesOf reads the interfaces of a process' network, but for loopback.
func interfacesOf(pid int) ([]Interface, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Interface
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if i, ok := parseInterface(lines.Text()); ok {
			out = append(out, i)
		}
	}
	return out, lines.Err()
}

// parseInterface reads a line of /proc/net/dev (net/core/net-procfs.c): eight
// numbers received, of which the first four are of interest, and eight sent.
func parseInterface(line string) (i Interface, ok bool) {
	name, rest, ok := strings.Cut(line, ":")
	fields := strings.Fields(rest)
	if i.Name = strings.TrimSpace(name); !ok || len(fields) < 12 || i.Name == "lo" {
		return i, false
	}
	for k, to := range map[int]*uint64{
		0: &i.Rx.Bytes, 1: &i.Rx.Packets, 2: &i.Rx.Errors, 3: &i.Rx.Dropped,
		8: &i.Tx.Bytes, 9: &i.Tx.Packets, 10: &i.Tx.Errors, 11: &i.Tx.Dropped,
	} {
		var err error
		if *to, err = strconv.ParseUint(fields[k], 10, 64); err != nil {
			return i, false
		}
	}
	return i, true
}
