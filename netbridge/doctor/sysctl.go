package doctor

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysctl reads a value below /proc/sys; empty if there is none.
func sysctl(path ...string) string {
	data, err := os.ReadFile(filepath.Join(append([]string{"/proc/sys"}, path...)...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// udpPorts are the local ports of a file such as /proc/net/udp, which has the
// kernel's own sockets, too.
func udpPorts(file string) (map[int]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("list UDP sockets: %w", err)
	}
	defer f.Close()
	out := map[int]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// "  12: 00000000:2119 00000000:0000 07 ..."
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if port, err := strconv.ParseInt(hex, 16, 32); err == nil {
			out[int(port)] = true
		}
	}
	return out, nil
}
