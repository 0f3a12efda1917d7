package network

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// row is one figure beside what it is measured against.
type row struct {
	Figure   string `json:"figure"`
	Measured string `json:"measured"`
	Beside   string `json:"beside,omitempty"`
	Goal     string `json:"goal,omitempty"`
	Met      *bool  `json:"met,omitempty"`
}

// report gathers the figures of a run.
type report struct {
	Begin   time.Time      `json:"begin"`
	End     time.Time      `json:"end"`
	Before  string         `json:"machineBefore"`
	After   string         `json:"machineAfter"`
	Rows    []row          `json:"rows"`
	Details map[string]any `json:"details"`
}

func machineLine() string {
	data, _ := os.ReadFile("/proc/loadavg") // without it the line says less
	return fmt.Sprintf("%d cores, load average %s", runtime.NumCPU(), strings.Join(strings.Fields(string(data))[:min(3, len(strings.Fields(string(data))))], " "))
}

func (r *report) begin() {
	r.Begin, r.Before, r.Details = time.Now(), machineLine(), map[string]any{}
}

// add notes a figure without a goal, and tells it at once.
func (r *report) add(figure, measured, beside string) {
	fmt.Printf("%s: %s (%s)\n", figure, measured, beside)
	r.Rows = append(r.Rows, row{Figure: figure, Measured: measured, Beside: beside})
}

// goal notes a figure with one, and fails the benchmark if it was missed and that
// matters.
func (r *report) goal(b *testing.B, figure, measured, beside, goal string, met bool) {
	b.Helper()
	r.add(figure, measured, beside)
	last := &r.Rows[len(r.Rows)-1]
	last.Goal, last.Met = goal, &met
	if !met && *strict {
		b.Errorf("%s: %s, the goal is %s", figure, measured, goal)
	}
}

func (r *report) write(path string) error {
	r.End, r.After = time.Now(), machineLine()
	fmt.Print("\n", r.markdown(), "\n")
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Before: %s. After: %s. %.0f s in all.\n\n", r.Before, r.After, r.End.Sub(r.Begin).Seconds())
	b.WriteString("| Figure | Measured | Beside | Goal | Met |\n|---|---|---|---|---|\n")
	for _, x := range r.Rows {
		met := ""
		if x.Met != nil {
			met = map[bool]string{true: "yes", false: "no"}[*x.Met]
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", x.Figure, x.Measured, x.Beside, x.Goal, met)
	}
	return b.String()
}

// quantile of the values by nearest rank.
func quantile[T int | float64 | time.Duration](values []T, q float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return s[min(max(int(q*float64(len(s))+0.9999), 1), len(s))-1]
}

// us is in microseconds, p50 and p99.
func us(list []time.Duration) string {
	return fmt.Sprintf("p50 %d µs, p99 %d µs", quantile(list, 0.5).Microseconds(), quantile(list, 0.99).Microseconds())
}

func TestQuantile(t *testing.T) {
	list := []int{4, 1, 3, 2}
	if quantile(list, 0.5) != 2 || quantile(list, 0.99) != 4 || quantile(list, 0.01) != 1 || list[0] != 4 {
		t.Error(quantile(list, 0.5), quantile(list, 0.99), list)
	}
}
