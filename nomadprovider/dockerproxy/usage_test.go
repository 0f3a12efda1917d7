package dockerproxy

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The engine's answers on cgroup v1 and v2, in what is read of them.
const (
	statsV1 = `{"read":"2026-05-01T12:00:00Z","cpu_stats":{"cpu_usage":{"total_usage":7000000},"throttling_data":{"periods":9,"throttled_periods":4,"throttled_time":300}},
		"memory_stats":{"usage":1000,"limit":2000,"stats":{"cache":1,"total_cache":600,"rss":1,"total_rss":300,"inactive_file":1,"total_inactive_file":400,"total_swap":0,"pgfault":1,"total_pgfault":50,"total_pgmajfault":2}}}`
	statsV2 = `{"read":"2026-05-01T12:00:00Z","cpu_stats":{"cpu_usage":{"total_usage":7000000},"throttling_data":{"periods":0,"throttled_periods":0,"throttled_time":0}},
		"memory_stats":{"usage":1000,"stats":{"file":600,"anon":300,"inactive_file":1400,"pgfault":50,"pgmajfault":2}}}`
)

func TestUsage(t *testing.T) {
	_, proxy, c := start(t)
	id, conn, out := begin(t, proxy, c, false, CallProgram, CallUsage)
	_, _ = io.WriteString(conn, `{"containers":[{"name":"v1","network":true},{"name":"v2"},{"name":"stopped"},{"name":"theirs"},{"name":"none"},{"name":"../v1"}]}`+"\n")
	answer, err := io.ReadAll(&framed{Reader: out, Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	var got UsageAnswer
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatalf("%q: %v", answer, err)
	}
	at, zero := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), uint64(0)
	if len(got["v1"].Interfaces) == 0 {
		if ifs, _ := net.Interfaces(); len(ifs) > 1 {
			t.Error("no traffic")
		}
	}
	v1 := got["v1"]
	v1.Interfaces = nil
	got["v1"] = v1
	if want := (UsageAnswer{
		"v1": {ID: "id-v1", At: at, CPU: 7e6, Periods: 9, ThrottledPeriods: 4, Throttled: 300, Memory: 1000, WorkingSet: 600, RSS: 300, Cache: 600, Swap: &zero, Faults: 50, MajorFaults: 2},
		"v2": {ID: "id-v2", At: at, CPU: 7e6, Memory: 1000, WorkingSet: 0, RSS: 300, Cache: 600, Faults: 50, MajorFaults: 2},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if code := exit(t, c, id); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestUsageOfNonsense(t *testing.T) {
	_, proxy, c := start(t)
	id, conn, out := begin(t, proxy, c, false, CallProgram, CallUsage)
	_, _ = io.WriteString(conn, "nonsense\n")
	if got, err := io.ReadAll(out); err != nil || !strings.Contains(string(got), "read what is asked for") {
		t.Errorf("%q %v", got, err)
	}
	if code := exit(t, c, id); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

func TestInterfaces(t *testing.T) {
	for line, want := range map[string]Interface{
		"  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16":                                          {"eth0", Traffic{1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
		"eth1:18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16":                          {"eth1", Traffic{1<<64 - 1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
		"    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16":                                          {},
		"Inter-|   Receive                                                |  Transmit":            {},
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs": {},
		"eth0: 1 2 3": {},
		"eth0: 1 2 x 4 5 6 7 8 9 10 11 12 13 14 15 16": {},
	} {
		if got, ok := parseInterface(line); ok != (want.Name != "") || ok && got != want {
			t.Errorf("%q: %+v %v", line, got, ok)
		}
	}
	if _, err := interfacesOf(os.Getpid()); err != nil {
		t.Error(err)
	}
}
