package bench

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

func cores() int { return runtime.NumCPU() }

// row is one figure beside what it is measured against.
type row struct {
	Figure   string `json:"figure"`
	Measured string `json:"measured"`
	Beside   string `json:"beside,omitempty"`
	Goal     string `json:"goal,omitempty"`
	Met      *bool  `json:"met,omitempty"`
	// Unjudged says why it is not known whether the goal was met.
	Unjudged string `json:"unjudged,omitempty"`
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

func (r *report) begin() {
	r.Begin, r.Before, r.Details = time.Now(), machineLine(), map[string]any{}
}

// add notes a figure without a goal.
func (r *report) add(figure, measured, beside string) {
	r.Rows = append(r.Rows, row{Figure: figure, Measured: measured, Beside: beside})
}

// goal notes a figure with one, and fails the benchmark if it was missed and
// that matters.
func (r *report) goal(b *testing.B, figure, measured, beside, goal string, met bool) {
	b.Helper()
	r.Rows = append(r.Rows, row{Figure: figure, Measured: measured, Beside: beside, Goal: goal, Met: &met})
	if !met && *strict {
		b.Errorf("%s: %s, the goal is %s", figure, measured, goal)
	}
}

// unjudged notes a figure with a goal that this run says nothing about; where
// goals matter, that is no success either.
func (r *report) unjudged(b *testing.B, figure, measured, beside, goal, why string) {
	b.Helper()
	r.Rows = append(r.Rows, row{Figure: figure, Measured: measured, Beside: beside, Goal: goal, Unjudged: why})
	if *strict {
		b.Errorf("%s: %s cannot be judged, %s", figure, measured, why)
	}
}

// detail keeps raw values in the JSON file.
func (r *report) detail(name string, v any) { r.Details[name] = v }

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
	cells := [][]string{{"Figure", "Measured", "Beside", "Goal", "Met"}}
	for _, x := range r.Rows {
		met := ""
		if x.Unjudged != "" {
			met = "not judged: " + x.Unjudged
		}
		if x.Met != nil {
			met = map[bool]string{true: "yes", false: "no"}[*x.Met]
		}
		cells = append(cells, []string{x.Figure, x.Measured, x.Beside, x.Goal, met})
	}
	width := make([]int, 5)
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Before: %s. After: %s. %.0f s in all.\n\n", r.Before, r.After, r.End.Sub(r.Begin).Seconds())
	for n, line := range cells {
		for i, c := range line {
			fmt.Fprintf(&b, "| %-*s ", width[i], c)
		}
		b.WriteString("|\n")
		if n == 0 {
			for i := range line {
				b.WriteString("|" + strings.Repeat("-", width[i]+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// quantile of the values by nearest rank: the p95 of 20 is the 19th.
func quantile[T int | float64 | time.Duration](values []T, q float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	s := slices.Clone(values)
	slices.Sort(s)
	rank := int(q*float64(len(s)) + 0.9999)
	return s[min(max(rank, 1), len(s))-1]
}

// median of an even number of values is the mean of the middle two.
func median[T int | float64 | time.Duration](values []T) T {
	n := len(values)
	if n == 0 {
		return 0
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

func msList(list []time.Duration) []int64 {
	out := make([]int64, len(list))
	for i, d := range list {
		out[i] = d.Milliseconds()
	}
	return out
}

func spread(list []time.Duration) string {
	return fmt.Sprintf("median %s, p95 %s", ms(median(list)), ms(quantile(list, 0.95)))
}

func TestQuantiles(t *testing.T) {
	var list []int
	for i := 20; i >= 1; i-- {
		list = append(list, i)
	}
	if m, p := median([]int{1, 2, 4}), quantile(list, 0.95); m != 2 || p != 19 {
		t.Errorf("median %d, p95 %d", m, p)
	}
	if m := median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("median %v", m)
	}
	if list[0] != 20 {
		t.Error("the values were reordered")
	}
}
