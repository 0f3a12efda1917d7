package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// afterglow is how long writes are still counted after the last pod runs.
const afterglow = 2 * time.Second

// statusPatches is the key under which kubeWrites counts them.
const statusPatches = "PATCH pods/status"

// measurement is one variant on its way.
type measurement struct {
	h     *hybrid
	start time.Time
	cpu   cpuTimes
	nomad map[string]int
	kube  map[string]float64
}

func (h *hybrid) measure(b *testing.B) *measurement {
	b.Helper()
	kube, err := h.kubeWrites(b.Context())
	must(b, err)
	cpu, err := h.cpu()
	must(b, err)
	return &measurement{h: h, start: time.Now(), cpu: cpu, nomad: h.proxy.snapshot(), kube: kube}
}

// end sums up what happened until the moment the goal was reached. The CPU time
// is taken now, writes a little later: the last ones may be on the way.
func (m *measurement) end(b *testing.B, reached time.Time) burst {
	b.Helper()
	cpu, err := m.h.cpu()
	must(b, err)
	time.Sleep(afterglow)
	kube, err := m.h.kubeWrites(b.Context())
	must(b, err)
	return burst{
		Seconds: reached.Sub(m.start).Seconds(),
		CPU:     since(m.cpu, cpu), Nomad: since(m.nomad, m.h.proxy.snapshot()), Kube: since(m.kube, kube),
	}
}

var requestTotal = regexp.MustCompile(`^apiserver_request_total\{.*resource="([^"]*)".*subresource="([^"]*)".*verb="([^"]*)".*\} ([0-9.e+]+)$`)

// kubeWrites asks the API server for its count of writes, by verb and resource.
func (h *hybrid) kubeWrites(ctx context.Context) (map[string]float64, error) {
	data, err := h.kube.RESTClient().Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return parseWrites(data)
}

func parseWrites(data []byte) (map[string]float64, error) {
	out := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := requestTotal.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		resource, sub, verb := m[1], m[2], m[3]
		switch verb {
		case "POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION":
		default:
			continue
		}
		n, err := strconv.ParseFloat(m[4], 64)
		if err != nil {
			return nil, err
		}
		if sub != "" {
			resource += "/" + sub
		}
		out[verb+" "+resource] += n
	}
	return out, lines.Err()
}

func TestParseWrites(t *testing.T) {
	got, err := parseWrites([]byte(`# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 7
apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1"} 3
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="events",scope="resource",subresource="",verb="POST",version="v1"} 1.5e+03
`))
	if err != nil || len(got) != 2 || got[statusPatches] != 8 || got["POST events"] != 1500 {
		t.Errorf("%v, %v", got, err)
	}
}
